use fastrand::Rng;

/// Makes inputs for the plain driver: seeded, so that a number names a run.
pub struct Mutator {
    random: Rng,
    seeds: Vec<Vec<u8>>,
}

/// The longest input, bytes.
const MAX_INPUT: usize = 16 << 10;
/// Numbers at which decoders go wrong.
const EDGES: [u64; 12] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x0001_0000,
    0x7fff_ffff,
    0xffff_ffff,
    i64::MAX as u64,
    u64::MAX,
];

impl Mutator {
    /// Starts from these well-formed inputs.
    #[must_use]
    pub fn new(seeds: Vec<Vec<u8>>) -> Self {
        Self { random: Rng::with_seed(0), seeds }
    }

    /// Turns to input `number` of `seed`: it depends on these two and the well-formed inputs alone.
    pub fn reseed(&mut self, seed: u64, number: u64) {
        self.random = Rng::with_seed(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    }

    /// An input: noise now and then, else a well-formed one with a few changes, or with none.
    pub fn input(&mut self) -> Vec<u8> {
        if self.seeds.is_empty() || self.random.u8(..16) == 0 {
            let length = self.random.usize(..256);
            return self.noise(length);
        }
        let mut input = self.seed();
        for _ in 0..self.random.usize(..6) {
            self.change(&mut input);
        }
        input.truncate(MAX_INPUT);
        input
    }

    fn seed(&mut self) -> Vec<u8> {
        let index = self.random.usize(..self.seeds.len());
        self.seeds[index].clone()
    }

    fn noise(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.random.fill(&mut bytes);
        bytes
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        if input.is_empty() {
            input.push(self.random.u8(..));
            return;
        }
        let at = self.random.usize(..input.len());
        let length = self.random.usize(1..=(input.len() - at).min(64));
        match self.random.u8(..9) {
            0 => input[at] ^= 1 << self.random.u8(..8),
            1 => input[at] = self.random.u8(..),
            2 => input.truncate(at),
            3 => drop(input.drain(at..at + length)),
            4 => {
                let piece = input[at..at + length].to_vec();
                let to = self.random.usize(..=input.len());
                input.splice(to..to, piece);
            }
            5 => {
                let length = self.random.usize(1..16);
                let piece = self.noise(length);
                input.splice(at..at, piece);
            }
            6 => self.edge(input, at),
            7 => {
                let other = self.seed();
                if !other.is_empty() {
                    let from = self.random.usize(..other.len());
                    input.truncate(at);
                    input.extend_from_slice(&other[from..]);
                }
            }
            _ => {
                let fill = self.random.u8(..);
                input[at..at + length].fill(fill);
            }
        }
    }

    /// Overwrites with a number at an edge: fixed width in either order, a varint, or digits.
    fn edge(&mut self, input: &mut Vec<u8>, at: usize) {
        let number = EDGES[self.random.usize(..EDGES.len())];
        let width = 1 << self.random.u8(..4);
        let bytes = match self.random.u8(..4) {
            0 => number.to_le_bytes()[..width].to_vec(),
            1 => number.to_be_bytes()[8 - width..].to_vec(),
            2 => varint(number),
            _ => number.to_string().into_bytes(),
        };
        let end = (at + bytes.len()).min(input.len());
        input.splice(at..end, bytes);
    }
}

fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}
