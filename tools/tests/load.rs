//! `entrepot-load` as others start it, against the synthetic registry and its faults.

mod load {
    pub mod world;

    mod commands;
    mod faults;
    mod programs;
    mod pulls;
    mod workloads;
}
