//! The real clients, each with a store of its own that starts empty at every pull.

use std::net::SocketAddr;
use std::path::Path;

use rustix::mount::{UnmountFlags, unmount};

use crate::deadline::until_true;
use crate::process::{Process, command, run, run_ok, tool};
use crate::temp::TempDir;

/// The platforms every test image has.
pub const ARCHITECTURES: [&str; 2] = ["amd64", "arm64"];

fn skopeo() -> std::process::Command {
    let mut skopeo = command(tool("skopeo", "skopeo"));
    skopeo.arg("--insecure-policy");
    skopeo
}

/// `skopeo copy --all` into a folder; returns the folder.
pub fn skopeo_copy(addr: SocketAddr, name: &str) -> TempDir {
    let copied = TempDir::new("skopeo");
    let mut skopeo = skopeo();
    skopeo.args(["copy", "--all", "--src-tls-verify=false"]);
    skopeo.arg(format!("docker://{addr}/{name}"));
    skopeo.arg(format!("dir:{}", copied.join("image").display()));
    skopeo.env("HOME", copied.path());
    run_ok(skopeo);
    copied
}

/// [`skopeo_copy`] that may fail; says whether it did not.
pub fn skopeo_copy_works(addr: SocketAddr, name: &str, into: &Path) -> bool {
    let mut skopeo = skopeo();
    skopeo.args(["copy", "--all", "--src-tls-verify=false"]);
    skopeo.arg(format!("docker://{addr}/{name}"));
    skopeo.arg(format!("dir:{}", into.display()));
    run(skopeo).status.success()
}

/// `skopeo inspect`: the digest of the tag, its layers on this platform, and all tags.
pub fn skopeo_inspect(addr: SocketAddr, name: &str) -> serde_json::Value {
    let mut skopeo = skopeo();
    skopeo.args(["--override-arch", "amd64", "--override-os", "linux"]);
    skopeo.args(["inspect", "--tls-verify=false"]);
    skopeo.arg(format!("docker://{addr}/{name}"));
    serde_json::from_str(&run_ok(skopeo)).expect("skopeo inspect prints JSON")
}

/// podman with its whole state in one folder.
pub struct Podman {
    dir: TempDir,
}

impl Podman {
    pub fn new() -> Podman {
        let dir = TempDir::new("podman");
        dir.write(
            "policy.json",
            r#"{"default":[{"type":"insecureAcceptAnything"}]}"#,
        );
        Podman { dir }
    }

    /// `registries.conf` that sends docker.io to a mirror with a project's name in its path.
    pub fn with_mirror(addr: SocketAddr, project: &str) -> Podman {
        let podman = Podman::new();
        podman.dir.write(
            "registries.conf",
            &format!(
                "[[registry]]\nprefix = \"docker.io\"\nlocation = \"docker.io\"\n\
                 [[registry.mirror]]\nlocation = \"{addr}/{project}\"\ninsecure = true\n"
            ),
        );
        podman
    }

    fn command(&self, args: &[&str]) -> std::process::Command {
        let mut podman = command(tool("podman", "podman"));
        podman.arg("--root").arg(self.dir.join("root"));
        podman.arg("--runroot").arg(self.dir.join("run"));
        podman.args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"]);
        podman.args(["--events-backend", "none"]);
        podman.args(args);
        podman.env("HOME", self.dir.path());
        podman.env("XDG_RUNTIME_DIR", self.dir.path());
        let registries = self.dir.join("registries.conf");
        if registries.is_file() {
            podman.env("CONTAINERS_REGISTRIES_CONF", registries);
        }
        podman
    }

    /// Pulls one platform and returns the diff ids of its unpacked layers.
    pub fn pull(&self, name: &str, architecture: &str) -> Vec<String> {
        let mut pull = self.command(&["pull", "--quiet", "--tls-verify=false"]);
        pull.arg("--signature-policy")
            .arg(self.dir.join("policy.json"));
        pull.args(["--arch", architecture, name]);
        let id = run_ok(pull).trim().to_owned();
        let inspect = self.command(&["image", "inspect", "--format", "json", &id]);
        diff_ids(&run_ok(inspect))
    }
}

impl Default for Podman {
    fn default() -> Podman {
        Podman::new()
    }
}

/// The layers in the JSON of `podman image inspect` and `docker image inspect`.
fn diff_ids(inspected: &str) -> Vec<String> {
    let image: serde_json::Value = serde_json::from_str(inspected).expect("JSON");
    let layers = image[0]["RootFS"]["Layers"].as_array().expect("layers");
    let layers = layers
        .iter()
        .map(|layer| layer.as_str().expect("a digest").to_owned());
    layers.collect()
}

/// A Docker daemon of our own: no bridge, no firewall rules, nothing of the machine's.
pub struct Docker {
    process: Process,
    dir: TempDir,
}

impl Docker {
    /// With `addr` as a mirror of Docker Hub when `mirror` is set.
    pub fn start(addr: SocketAddr, mirror: bool) -> Docker {
        let dir = TempDir::new("docker");
        let mut dockerd = command(tool("dockerd", "docker.io"));
        dockerd.args(["--iptables=false", "--ip6tables=false", "--bridge=none"]);
        dockerd.args(["--storage-driver=vfs", "--insecure-registry=127.0.0.0/8"]);
        dockerd
            .arg("--config-file")
            .arg(dir.write("daemon.json", "{}"));
        dockerd.arg("--data-root").arg(dir.join("data"));
        dockerd.arg("--exec-root").arg(dir.join("exec"));
        dockerd.arg("--pidfile").arg(dir.join("pid"));
        dockerd.arg(format!("--host=unix://{}", dir.join("sock").display()));
        if mirror {
            dockerd.arg(format!("--registry-mirror=http://{addr}"));
        }
        let process = Process::start("dockerd", dockerd);
        let mut docker = Docker { process, dir };
        until_true("dockerd answers", || {
            let exited = docker.process.has_exited();
            assert!(exited.is_none(), "dockerd ended: {exited:?}");
            run(docker.command(&["version"])).status.success()
        });
        docker
    }

    fn command(&self, args: &[&str]) -> std::process::Command {
        let mut docker = command(tool("docker", "docker.io"));
        docker
            .arg("--host")
            .arg(format!("unix://{}", self.dir.join("sock").display()));
        docker.args(args);
        docker.env("HOME", self.dir.path());
        docker.env("DOCKER_CONFIG", self.dir.path());
        docker
    }

    /// Pulls one platform, returns the digest of its tag and the diff ids of its unpacked layers,
    /// and removes it again: one daemon holds one platform of a name.
    pub fn pull(&self, name: &str, architecture: &str) -> (String, Vec<String>) {
        let platform = format!("linux/{architecture}");
        run_ok(self.command(&["pull", "--quiet", "--platform", &platform, name]));
        let layers = diff_ids(&run_ok(self.command(&["image", "inspect", name])));
        let format = "{{index .RepoDigests 0}}";
        let printed = run_ok(self.command(&["image", "inspect", "--format", format, name]));
        let (_, digest) = printed.trim().split_once('@').expect("name@digest");
        run_ok(self.command(&["image", "rm", "--force", name]));
        (digest.to_owned(), layers)
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // SIGTERM lets it unmount its data root and end its containerd.
        self.process.terminate_quietly();
        // It does not always: a mount would keep the folder.
        let _ = unmount(self.dir.join("data"), UnmountFlags::DETACH);
    }
}

/// A containerd of our own, used through `ctr`.
pub struct Containerd {
    _process: Process,
    dir: TempDir,
}

impl Containerd {
    /// `hosts` is the `hosts.toml` for docker.io.
    pub fn start(hosts: &str) -> Containerd {
        let dir = TempDir::new("containerd");
        dir.write("certs.d/docker.io/hosts.toml", hosts);
        let folder = dir.path().display();
        let config = format!(
            "version = 2\nroot = \"{folder}/root\"\nstate = \"{folder}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = \"{folder}/sock\"\n[ttrpc]\naddress = \"{folder}/ttrpc\"\n"
        );
        let mut containerd = command(tool("containerd", "containerd"));
        containerd
            .arg("--config")
            .arg(dir.write("config.toml", &config));
        let mut process = Process::start("containerd", containerd);
        let sock = dir.join("sock");
        until_true("containerd answers", || {
            let exited = process.has_exited();
            assert!(exited.is_none(), "containerd ended: {exited:?}");
            sock.exists() && run(ctr(&dir, &["version"])).status.success()
        });
        Containerd {
            _process: process,
            dir,
        }
    }

    /// Pulls and unpacks one platform.
    pub fn pull(&self, name: &str, architecture: &str) {
        let hosts = self.dir.join("certs.d");
        let mut pull = ctr(&self.dir, &["images", "pull", "--snapshotter", "native"]);
        pull.arg("--hosts-dir").arg(hosts);
        pull.args(["--platform", &format!("linux/{architecture}"), name]);
        run_ok(pull);
    }

    /// The digests of everything it holds.
    pub fn content(&self) -> Vec<String> {
        let printed = run_ok(ctr(&self.dir, &["content", "ls", "--quiet"]));
        printed.lines().map(str::to_owned).collect()
    }
}

fn ctr(dir: &TempDir, args: &[&str]) -> std::process::Command {
    let mut ctr = command(tool("ctr", "containerd"));
    ctr.arg("--address").arg(dir.join("sock")).args(args);
    ctr
}
