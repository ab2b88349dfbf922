//! Whose memory the device has: what is lent to a transfer belongs to the kernel until it is over,
//! whoever dies meanwhile.

use std::ops::Range;

/// Memory lent to transfers under way.
#[derive(Debug, Default)]
pub(super) struct Lender {
    loans: Vec<Loan>,
}

#[derive(Debug)]
struct Loan {
    memory: Range<usize>,
    /// Whether the device writes to it: a read.
    written_to: bool,
}

impl Lender {
    /// Lends memory to a transfer.
    ///
    /// # Panics
    /// The device has it already, and would write to it now or then.
    pub(super) fn lend(&mut self, memory: Range<usize>, written_to: bool) {
        for loan in &self.loans {
            let harmless = !loan.written_to && !written_to;
            assert!(
                harmless || !overlap(&loan.memory, &memory),
                "memory is lent to a transfer while another one may write to it"
            );
        }
        self.loans.push(Loan { memory, written_to });
    }

    /// A transfer gives its memory back.
    pub(super) fn give_back(&mut self, memory: &Range<usize>) {
        let at = self.loans.iter().position(|loan| loan.memory == *memory);
        self.loans.swap_remove(at.expect("what is given back was lent"));
    }

    /// Whether the device has any of it, or, if only that matters, may write to it.
    pub(super) fn has(&self, memory: &Range<usize>, only_written: bool) -> bool {
        let mut loans = self.loans.iter();
        loans.any(|loan| (loan.written_to || !only_written) && overlap(&loan.memory, memory))
    }
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}
