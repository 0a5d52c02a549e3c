//! What the black-box tests stand on: starting programs, an HTTP/1.1 client that sees every byte,
//! images, a real registry, the synthetic upstream, and the server under test.
//!
//! Nothing here uses code of the server or the store: these tests are an independent oracle.
//! Every program started here is killed with its process group when its value is dropped, and by
//! the kernel when the test process dies. Ports are always free ones. Nothing sleeps to let
//! something happen: every wait is for an observable condition and has a deadline.

pub mod clients;
pub mod deadline;
pub mod dice;
pub mod disk;
pub mod entrepot;
pub mod http;
pub mod image;
pub mod origin;
pub mod process;
pub mod ranges;
pub mod registry;
pub mod sha256;
pub mod tap;
pub mod temp;
pub mod witness;
pub mod world;
