use super::options::DeviceChoice;
use crate::{BenchError, PageContent};
use std::time::{Duration, Instant};
use undercroft_client::Client;
use undercroft_gpu_shim::cuda::{CudaDevice, CudaOptions, PinFacts, link_ceiling};
use undercroft_gpu_shim::{BlockId, Device, DeviceError, HostDevice, HostOptions};
use undercroft_wire::Geometry;

/// How long all of an arena may take to be registered.
const PINNING_PATIENCE: Duration = Duration::from_secs(120);
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// What a block holds after it was dropped: no page's content.
const DROPPED: u8 = 0xee;

/// A device whose blocks can be written and looked at from outside, as an engine's kernels do.
pub(super) trait Target: Send + Sync {
    /// What pages are copied by.
    fn device(&self) -> &dyn Device;

    /// Writes a page's content into a block.
    fn fill(&self, block: BlockId, content: &PageContent) -> Result<(), BenchError>;

    /// Writes something else over a block.
    fn drop_block(&self, block: BlockId) -> Result<(), BenchError>;

    /// How many bytes of a block are not the page's.
    fn wrong_bytes(&self, block: BlockId, content: &PageContent) -> Result<u64, BenchError>;

    /// What loads into it cannot be faster than, bytes a second; `None`: memory's own speed.
    fn link_bytes_per_s(&self) -> Result<Option<f64>, BenchError>;

    /// Whether its sessions are better off with pages delivered into their staging.
    fn wants_copies(&self) -> Result<bool, BenchError>;

    /// Makes ready for loads out of what this client has mapped of the arena, so many bytes.
    /// Returns when it is.
    fn attach(&self, client: &Client, mapped_bytes: u64) -> Result<(), BenchError>;

    /// In words, for the report.
    fn name(&self) -> String;
}

/// A device of so many blocks.
///
/// # Errors
/// There is no such device, or no room on it.
pub(super) fn target(
    choice: DeviceChoice,
    geometry: Geometry,
    blocks: u32,
    threads: usize,
) -> Result<Box<dyn Target>, BenchError> {
    match choice {
        DeviceChoice::Host => {
            let options = HostOptions { copy_threads: threads, ..HostOptions::default() };
            Ok(Box::new(HostDevice::new(geometry, blocks, options)?))
        }
        DeviceChoice::Cuda(ordinal) => Ok(Box::new(Gpu::new(ordinal, geometry, blocks)?)),
    }
}

impl Target for HostDevice {
    fn device(&self) -> &dyn Device {
        self
    }

    fn fill(&self, block: BlockId, content: &PageContent) -> Result<(), BenchError> {
        Ok(self.write_block(block, |at, bytes| content.fill(at as u64, bytes))?)
    }

    fn drop_block(&self, block: BlockId) -> Result<(), BenchError> {
        Ok(self.write_block(block, |_, bytes| bytes.fill(DROPPED))?)
    }

    fn wrong_bytes(&self, block: BlockId, content: &PageContent) -> Result<u64, BenchError> {
        let mut wrong = 0;
        self.read_block(block, |at, bytes| {
            wrong += content.verify(at as u64, bytes).map_or_else(|wrong| wrong.count, |()| 0);
        })?;
        Ok(wrong)
    }

    fn link_bytes_per_s(&self) -> Result<Option<f64>, BenchError> {
        Ok(None)
    }

    fn wants_copies(&self) -> Result<bool, BenchError> {
        Ok(false)
    }

    fn attach(&self, _: &Client, _: u64) -> Result<(), BenchError> {
        Ok(())
    }

    fn name(&self) -> String {
        "ordinary memory, no link in the way".to_owned()
    }
}

/// A GPU, by the driver.
struct Gpu {
    device: CudaDevice,
    ordinal: u32,
}

impl Gpu {
    fn new(ordinal: u32, geometry: Geometry, blocks: u32) -> Result<Self, BenchError> {
        let allocated = CudaDevice::allocate(ordinal, geometry, blocks, CudaOptions::default());
        let device = allocated.map_err(|error| BenchError::Option {
            option: "--device",
            problem: format!("cuda:{ordinal} cannot be used: {error}"),
        })?;
        Ok(Self { device, ordinal })
    }

    fn image(&self) -> Vec<u8> {
        vec![DROPPED; self.device.geometry().page_bytes() as usize]
    }
}

impl Target for Gpu {
    fn device(&self) -> &dyn Device {
        &self.device
    }

    fn fill(&self, block: BlockId, content: &PageContent) -> Result<(), BenchError> {
        let mut image = self.image();
        content.fill(0, &mut image);
        Ok(self.device.write_block(block, &image)?)
    }

    fn drop_block(&self, block: BlockId) -> Result<(), BenchError> {
        Ok(self.device.write_block(block, &self.image())?)
    }

    fn wrong_bytes(&self, block: BlockId, content: &PageContent) -> Result<u64, BenchError> {
        let mut image = self.image();
        self.device.read_block(block, &mut image)?;
        Ok(content.verify(0, &image).map_or_else(|wrong| wrong.count, |()| 0))
    }

    fn link_bytes_per_s(&self) -> Result<Option<f64>, BenchError> {
        Ok(Some(link_ceiling(self.ordinal)?.load_bytes_per_s))
    }

    fn wants_copies(&self) -> Result<bool, BenchError> {
        Ok(!self.device.can_pin_read_only().map_err(DeviceError::from)?)
    }

    fn attach(&self, client: &Client, mapped_bytes: u64) -> Result<(), BenchError> {
        let pins = self.device.pins();
        let settled = |facts: PinFacts| facts.pinned_bytes + facts.refused_bytes;
        let expected = settled(pins.facts()) + mapped_bytes;
        client.attach_gpu(&self.device).map_err(DeviceError::from)?;
        let since = Instant::now();
        // Its parts are told of, and then registered, by threads of their own.
        while settled(pins.facts()) < expected {
            if since.elapsed() > PINNING_PATIENCE {
                let problem = format!("the arena was not registered: {:?}", pins.facts());
                return Err(BenchError::Measure { row: "dram", problem });
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    fn name(&self) -> String {
        let name = self.device.name().unwrap_or_else(|error| error.to_string());
        let by = self.device.modes();
        let refusal = match self.device.pins().facts().refusal {
            Some(refusal) => format!(", with memory it could not register ({refusal})"),
            None => String::new(),
        };
        format!("{name}, loads by layer by {}, stores by {}{refusal}", by.load_by_layer, by.store)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;
    use undercroft_wire::{DomainId, PageKey, Rank, SpaceDigest};

    #[test]
    fn every_byte_of_a_block_counts() {
        let geometry = Geometry::new(2, 2, 1024).unwrap();
        let target = target(DeviceChoice::Host, geometry, 2, 1).unwrap();
        let domain = DomainId::named("default");
        let content =
            PageContent::new(&domain, &SpaceDigest([1; 32]), Rank::Shared, &PageKey([2; 32]));
        target.fill(BlockId(1), &content).unwrap();
        assert_eq!(target.wrong_bytes(BlockId(1), &content).unwrap(), 0);
        target.drop_block(BlockId(1)).unwrap();
        // A few of the content's own bytes happen to be what a dropped block holds.
        assert!(target.wrong_bytes(BlockId(1), &content).unwrap() > 4000);
    }
}
