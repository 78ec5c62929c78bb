//! Seeded randomness: `HEADSTART_TEST_SEED` replays a run.

/// A small generator (SplitMix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
#[derive(Clone)]
pub struct Dice {
    seed: u64,
    state: u64,
}

impl Dice {
    /// With the seed of `HEADSTART_TEST_SEED`, or a new one.
    pub fn seeded() -> Self {
        let seed = match std::env::var("HEADSTART_TEST_SEED") {
            Ok(text) => text.parse().expect("HEADSTART_TEST_SEED is a number"),
            Err(_) => {
                let bytes = *headstart::model::SnapshotId::random().as_bytes();
                u64::from(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
            }
        };
        Self::of(seed)
    }

    /// With this seed.
    pub fn of(seed: u64) -> Self {
        Self { seed, state: seed }
    }

    /// What to print, so that the run can be replayed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Another one for a task of its own, by its number.
    pub fn fork(&self, number: u64) -> Self {
        let mut fork = Self { seed: self.seed, state: self.state ^ (number + 1).wrapping_mul(0xA076_1D64_78BD_642F) };
        fork.next();
        fork
    }

    /// A number from 0 up to, not including, `end`.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).expect("below a usize")
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.state;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    }
}
