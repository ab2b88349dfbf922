/// What one corruption came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// All that was hit is a miss.
    Miss,
    /// No page was hit: all of them are right.
    Harmless,
}

/// What one corruption came to, or what is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict(pub(super) Result<Outcome, String>);

impl Verdict {
    /// Something was served or lost that should not be.
    pub(super) fn wrong(what: String) -> Self {
        Self(Err(what))
    }
}

impl From<Outcome> for Verdict {
    fn from(outcome: Outcome) -> Self {
        Self(Ok(outcome))
    }
}
