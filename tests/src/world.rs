//! The smallest world most tests need: one origin with one image, one server before it.

use crate::entrepot::Entrepot;
use crate::http::Connection;
use crate::origin::{Held, Origin};

pub struct World {
    pub origin: Origin,
    pub server: Entrepot,
    /// The manifest of library/app:1.
    pub manifest: Held,
    /// One of its layers.
    pub layer: Held,
}

impl World {
    pub fn new() -> World {
        let origin = Origin::start();
        let image = origin.image("library/app", "1", 1);
        let server = Entrepot::before(origin.url());
        World {
            manifest: image.manifests[0].itself.clone(),
            layer: image.manifests[0].layers[0].clone(),
            origin,
            server,
        }
    }

    pub fn manifest_target(&self) -> String {
        format!("/v2/dh/library/app/manifests/{}", self.manifest.digest)
    }

    pub fn layer_target(&self) -> String {
        format!("/v2/dh/library/app/blobs/{}", self.layer.digest)
    }

    pub fn open(&self) -> Connection {
        Connection::open(self.server.addr())
    }
}

impl Default for World {
    fn default() -> World {
        World::new()
    }
}
