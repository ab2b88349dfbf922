use serde::Serialize;

const GIB: f64 = (1_u64 << 30) as f64;
const HOURS_PER_YEAR: f64 = 365.0 * 24.0;
pub(super) const SECONDS_PER_DAY: f64 = 86_400.0;
/// For how long makers of drives say that so many writes a day are borne.
pub(super) const RATED_YEARS: f64 = 5.0;

/// What things cost, in any one currency, and how much writing a drive bears.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Prices {
    /// A GiB of DRAM.
    pub dram_per_gib: f64,
    /// A GiB of SSD.
    pub ssd_per_gib: f64,
    /// A GPU for an hour.
    pub gpu_hour: f64,
    /// Years over which DRAM and SSD are paid off.
    pub years: f64,
    /// How often a day a drive may be written in full, for five years, by its data sheet.
    pub drive_writes_per_day: f64,
}

/// What a million input tokens cost.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Cost {
    /// All of it.
    pub total: f64,
    /// GPUs, for the tokens that are computed.
    pub gpu: f64,
    /// The DRAM tier.
    pub dram: f64,
    /// The SSD tier; drives that wear out sooner are bought anew.
    pub ssd: f64,
}

/// What writing does to a drive as large as the SSD tier.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Wear {
    /// How often a day all of it is written.
    pub drive_writes_per_day: f64,
    /// Until what its data sheet promises is used up, years; `None` if nothing is written.
    pub life_years: Option<f64>,
}

impl Prices {
    /// What the tiers cost to buy.
    pub(super) fn hardware(&self, dram_bytes: u64, ssd_bytes: u64) -> f64 {
        dram_bytes as f64 / GIB * self.dram_per_gib + ssd_bytes as f64 / GIB * self.ssd_per_gib
    }

    /// A drive of `ssd_bytes` that is written at so many bytes a second.
    pub(super) fn wear(&self, ssd_bytes: u64, bytes_per_s: f64) -> Wear {
        if ssd_bytes == 0 || bytes_per_s <= 0.0 {
            return Wear::default();
        }
        let drive_writes_per_day = bytes_per_s * SECONDS_PER_DAY / ssd_bytes as f64;
        let life_years = self.drive_writes_per_day * RATED_YEARS / drive_writes_per_day;
        Wear { drive_writes_per_day, life_years: Some(life_years) }
    }

    /// For each million of `tokens`, which came in `seconds` and of which GPUs computed what was not
    /// found for `gpu_seconds`, all GPUs added up.
    pub(super) fn cost(
        &self,
        (tokens, seconds): (f64, f64),
        gpu_seconds: f64,
        (dram_bytes, ssd_bytes): (u64, u64),
        life_years: Option<f64>,
    ) -> Cost {
        let millions = tokens / 1e6;
        let hours = seconds / 3600.0;
        let ssd_years = life_years.map_or(self.years, |life| life.min(self.years));
        let paid_off = |price: f64, years: f64| price / (years * HOURS_PER_YEAR) * hours / millions;
        let gpu = gpu_seconds / 3600.0 * self.gpu_hour / millions;
        let dram = paid_off(self.hardware(dram_bytes, 0), self.years);
        let ssd = paid_off(self.hardware(0, ssd_bytes), ssd_years);
        Cost { total: gpu + dram + ssd, gpu, dram, ssd }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;

    const PRICES: Prices = Prices {
        dram_per_gib: 4.0,
        ssd_per_gib: 0.125,
        gpu_hour: 3.0,
        years: 4.0,
        drive_writes_per_day: 1.0,
    };

    /// By hand: a tebibyte written at 89 MB/s is written 7 times a day, and is worn out in 0.715 of a
    /// year where once a day for five years was promised.
    #[test]
    fn a_drive_lives_as_long_as_its_rating_lasts() {
        let wear = PRICES.wear(1 << 40, 89e6);
        assert!((wear.drive_writes_per_day - 6.994).abs() < 1e-3, "{wear:?}");
        assert!((wear.life_years.unwrap() - 0.7149).abs() < 1e-3, "{wear:?}");
        assert_eq!(PRICES.wear(1 << 40, 0.0), Wear::default());
        assert_eq!(PRICES.wear(0, 1e6).life_years, None);
    }

    /// By hand: an hour of traffic of two million tokens, half an hour of a GPU, 100 GiB of DRAM for
    /// 400 over 35,040 hours, and a TiB of SSD for 128, which lasts for one year.
    #[test]
    fn a_million_tokens_costs_its_share_of_all_three() {
        let sizes = (100 << 30, 1 << 40);
        let cost = PRICES.cost((2e6, 3600.0), 1800.0, sizes, Some(1.0));
        assert!((cost.gpu - 0.75).abs() < 1e-12);
        assert!((cost.dram - 400.0 / 35_040.0 / 2.0).abs() < 1e-12);
        assert!((cost.ssd - 128.0 / 8_760.0 / 2.0).abs() < 1e-12);
        assert!((cost.total - cost.gpu - cost.dram - cost.ssd).abs() < 1e-12);
        // Beyond the years everything is paid off, a longer life saves nothing.
        let lasting = |life| PRICES.cost((2e6, 3600.0), 1800.0, sizes, life).ssd;
        assert!((lasting(Some(40.0)) - lasting(None)).abs() < 1e-15);
    }
}
