use crate::DeviceError;
use std::fmt;
use std::time::Instant;

/// How a kind of device tells that its copies are done. An implementation owns the spans of its
/// jobs until then.
pub trait Completion: Send + Sync {
    /// Waits until `layers` whole layers of all jobs are copied, or the deadline has passed.
    /// `Ok(false)` is the latter.
    ///
    /// # Errors
    /// The device failed, and touches nothing of those layers any more.
    fn wait_layers(&self, layers: u32, deadline: Option<Instant>) -> Result<bool, DeviceError>;

    /// How many leading layers of all jobs are copied.
    fn layers_done(&self) -> u32;
}

/// Copies under way. Dropping it waits for them: a copy never outlives what it touches.
#[must_use = "a transfer that nobody waits for is waited for when it is dropped"]
pub struct Transfer {
    layers: u32,
    completion: Box<dyn Completion>,
}

impl Transfer {
    /// A transfer of pages with `layers` layers.
    pub fn new(layers: u32, completion: Box<dyn Completion>) -> Self {
        Self { layers, completion }
    }

    /// Waits until everything is copied.
    ///
    /// # Errors
    /// The device failed.
    pub fn wait(&self) -> Result<(), DeviceError> {
        self.wait_until(self.layers, None)
    }

    /// Waits until layer `layer` and all before it are copied, at most until the deadline.
    ///
    /// # Errors
    /// A layer that is not there, the deadline passed, the device failed.
    pub fn wait_layer(&self, layer: u32, deadline: Option<Instant>) -> Result<(), DeviceError> {
        if layer >= self.layers {
            let count = self.layers;
            return Err(DeviceError::Fragment { what: "layer", found: layer, count });
        }
        self.wait_until(layer + 1, deadline)
    }

    /// Waits until everything is copied, at most until the deadline.
    ///
    /// # Errors
    /// The deadline passed, the device failed.
    pub fn wait_deadline(&self, deadline: Instant) -> Result<(), DeviceError> {
        self.wait_until(self.layers, Some(deadline))
    }

    fn wait_until(&self, layers: u32, deadline: Option<Instant>) -> Result<(), DeviceError> {
        if self.completion.wait_layers(layers, deadline)? {
            Ok(())
        } else {
            Err(DeviceError::Expired { layer: layers - 1 })
        }
    }

    /// Number of leading layers that are copied.
    #[must_use]
    pub fn layers_done(&self) -> u32 {
        self.completion.layers_done()
    }

    /// Whether everything is copied.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.layers_done() >= self.layers
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        // Whoever drops a transfer does not ask for its result; what matters is that it is over.
        let _over = self.completion.wait_layers(self.layers, None);
    }
}

impl fmt::Debug for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Transfer({} of {} layers)", self.layers_done(), self.layers)
    }
}
