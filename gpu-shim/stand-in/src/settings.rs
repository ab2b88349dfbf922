//! What kind of driver and device this is.

/// Where a program that is not a test says what the driver is like: `name=value,name=value`.
pub(crate) const VARIABLE: &str = "UNDERCROFT_STAND_IN";

macro_rules! settings {
    ($($(#[$doc:meta])* $variant:ident $name:literal = $value:expr;)*) => {
        /// One property of the driver or its devices. The same name stands for it in the environment variable
        /// `UNDERCROFT_STAND_IN` (`name=value,name=value`), which is read when the library is
        /// first used.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Setting { $($(#[$doc])* $variant),* }

        const ROWS: &[(Setting, &str, u64)] = &[$((Setting::$variant, $name, $value)),*];
    };
}

settings! {
    /// `driver_version`: what `cuDriverGetVersion` says (1000 × major + 10 × minor). 12080.
    DriverVersion "driver_version" = 12_080;
    /// `devices`: how many there are. 0: `cuInit` answers `NO_DEVICE`. 1.
    Devices "devices" = 1;
    /// `device_bytes`: memory of all devices together. 16 GiB.
    DeviceBytes "device_bytes" = 16 << 30;
    /// `compute_capability`: 10 × major + minor. 90.
    ComputeCapability "compute_capability" = 90;
    /// `multiprocessors`: 132.
    Multiprocessors "multiprocessors" = 132;
    /// `batch`: 1, or 0: `cuMemcpyBatchAsync` answers `NOT_SUPPORTED`.
    Batch "batch" = 1;
    /// `read_only_registration`: 1, or 0: the attribute says no and the flag is refused.
    ReadOnlyRegistration "read_only_registration" = 1;
    /// `register_ceiling_bytes`: the most that one call registers, beyond it `INVALID_VALUE`.
    /// 2^64 - 1.
    RegisterCeilingBytes "register_ceiling_bytes" = u64::MAX;
    /// `pinned_bytes`: the most that is registered and allocated on the host altogether, beyond it
    /// `OUT_OF_MEMORY`. 2^64 - 1.
    PinnedBytes "pinned_bytes" = u64::MAX;
    /// `delay_us`: how long each operation takes at least. 0.
    DelayUs "delay_us" = 0;
    /// `capturing`: the handle of a stream that an engine captures in global mode, or 0. Calls that
    /// break a capture answer `STREAM_CAPTURE_UNSUPPORTED`, but in threads whose mode is relaxed. 0.
    Capturing "capturing" = 0;
    /// `hold`: 1: no operation starts until it is 0 again. 0.
    Hold "hold" = 0;
}

impl Setting {
    /// The name by which it is set.
    #[must_use]
    pub fn name(self) -> &'static str {
        ROWS[self as usize].1
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        ROWS.iter().find(|(_, known, _)| *known == name).map(|(setting, _, _)| *setting)
    }
}

/// A value for every [`Setting`].
#[derive(Debug, Clone)]
pub(crate) struct Settings([u64; ROWS.len()]);

impl Default for Settings {
    fn default() -> Self {
        let mut values = [0; ROWS.len()];
        for (setting, _, value) in ROWS {
            values[*setting as usize] = *value;
        }
        Self(values)
    }
}

impl Settings {
    /// The defaults, and what the environment says.
    pub(crate) fn from_environment() -> Self {
        let mut settings = Self::default();
        let text = std::env::var(VARIABLE).unwrap_or_default();
        for pair in text.split(',').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match (Setting::from_name(name), value.parse()) {
                (Some(setting), Ok(value)) => settings.set(setting, value),
                _ => panic!("{VARIABLE}: `{pair}` is no setting and number"),
            }
        }
        settings
    }

    pub(crate) fn get(&self, setting: Setting) -> u64 {
        self.0[setting as usize]
    }

    pub(crate) fn is_on(&self, setting: Setting) -> bool {
        self.get(setting) != 0
    }

    pub(crate) fn set(&mut self, setting: Setting, value: u64) {
        self.0[setting as usize] = value;
    }
}
