//! Debian's docker-registry (CNCF Distribution) as an upstream, filled by skopeo.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use crate::deadline::until_true;
use crate::http;
use crate::image::Image;
use crate::process::{Process, command, run_ok, tool};
use crate::temp::TempDir;

pub struct Registry {
    process: Process,
    addr: SocketAddr,
    dir: TempDir,
}

/// A port nobody listens on now. For programs that cannot bind port 0 and tell.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("a bound listener").port()
}

impl Registry {
    pub fn start() -> Registry {
        let dir = TempDir::new("registry");
        let addr = SocketAddr::from(([127, 0, 0, 1], free_port()));
        dir.write("config.yml", &config(addr, &dir.join("data")));
        let process = serve(&dir, addr);
        Registry { process, addr, dir }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Pushes all platforms of an image with skopeo.
    pub fn push(&self, image: &Image, repository: &str, tag: &str) {
        let layout = TempDir::new("layout");
        image.write_layout(layout.path(), tag);
        let mut skopeo = command(tool("skopeo", "skopeo"));
        skopeo.args([
            "--insecure-policy",
            "copy",
            "--all",
            "--dest-tls-verify=false",
        ]);
        skopeo.arg(format!("oci:{}:{tag}", layout.path().display()));
        skopeo.arg(format!("docker://{}/{repository}:{tag}", self.addr));
        skopeo.env("HOME", self.dir.path());
        run_ok(skopeo);
        let index = format!("/v2/{repository}/manifests/{}", image.index.digest);
        let accept = [("Accept", "application/vnd.oci.image.index.v1+json")];
        let pushed = http::fetch(self.addr, "GET", &index, &accept).expect("the index");
        assert_eq!(
            pushed.expect(200).body,
            image.index.bytes,
            "skopeo changed the index"
        );
    }

    /// From now on connections are refused.
    pub fn stop(&mut self) {
        self.process.kill9();
    }

    /// Serves the same content on the same port again.
    pub fn resume(&mut self) {
        self.process = serve(&self.dir, self.addr);
    }
}

fn serve(dir: &TempDir, addr: SocketAddr) -> Process {
    let mut command = command(tool("docker-registry", "docker-registry"));
    command.arg("serve").arg(dir.join("config.yml"));
    let mut process = Process::start("docker-registry", command);
    until_true("docker-registry listens", || {
        let exited = process.has_exited();
        assert!(exited.is_none(), "docker-registry ended: {exited:?}");
        std::net::TcpStream::connect(addr).is_ok()
    });
    http::get(addr, "/v2/").expect(200);
    process
}

fn config(addr: SocketAddr, data: &Path) -> String {
    format!(
        "version: 0.1\n\
         log: {{level: error, accesslog: {{disabled: true}}}}\n\
         storage: {{filesystem: {{rootdirectory: {}}}}}\n\
         http: {{addr: \"{addr}\"}}\n",
        data.display()
    )
}
