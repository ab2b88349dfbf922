//! Device memory: copying pages between an engine's blocks and host memory.
//!
//! A page is contiguous on the host and scattered on the device: per layer and part (K, V) one
//! fragment at `base[layer][part] + block × stride`. This crate owns that difference and nothing
//! else: it knows no keys, no daemon and no policy. [`Device`] is the seam, [`KvLayout`] says where
//! an engine keeps its fragments, [`HostDevice`] is the device made of ordinary memory that tests
//! and engines without a GPU use, [`Buffers`] are pages that are whole already, and
//! [`cuda::CudaDevice`] is a GPU.

mod batch;
mod buffers;
pub mod cuda;
mod device;
mod error;
mod host;
mod layout;
mod pace;
mod transfer;
mod workers;

pub use buffers::Buffers;
pub use device::{BlockId, Device, LoadJob, StoreJob};
pub use error::DeviceError;
pub use host::{HostDevice, HostOptions};
pub use layout::{KvLayout, LayoutError, Place, Run, Strip, Tensor};
pub use transfer::{Completion, Transfer};

// What a page on the host is made of; whoever uses a device needs no other part of `arena`.
pub use undercroft_arena::{Memory, Span};

#[cfg(test)]
mod tests;
