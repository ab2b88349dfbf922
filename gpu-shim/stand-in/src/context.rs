//! Primary contexts, and which of them is current on which thread.

use crate::Code;
use crate::calls::Call;
use crate::handles::{Handle, Kind, Table};
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// The primary context of a device, while somebody retains it.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) device: u32,
    retained: u64,
    /// What it died of.
    pub(crate) dead: Option<Code>,
    /// The default stream, once somebody has used it.
    pub(crate) default_stream: Option<Handle>,
}

/// All contexts and each thread's stack of them.
#[derive(Debug)]
pub(crate) struct Contexts {
    pub(crate) table: Table<Context>,
    stacks: HashMap<u64, Vec<Handle>>,
}

/// A thread's number. Not the standard library's: that is gone while a thread's own data is.
fn thread_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    thread_local! {
        static NUMBER: Cell<u64> = const { Cell::new(0) };
    }
    NUMBER.with(|number| {
        if number.get() == 0 {
            number.set(NEXT.fetch_add(1, Ordering::Relaxed));
        }
        number.get()
    })
}

impl Contexts {
    pub(crate) fn new() -> Self {
        Self { table: Table::new(Kind::Context), stacks: HashMap::new() }
    }

    fn primary(&self, device: u32) -> Option<Handle> {
        self.table.iter().find(|(_, context)| context.device == device).map(|(handle, _)| handle)
    }

    /// The device's primary context, made if need be.
    pub(crate) fn retain(&mut self, device: u32) -> Result<Handle, Code> {
        let Some(handle) = self.primary(device) else {
            let context = Context { device, retained: 1, dead: None, default_stream: None };
            return Ok(self.table.insert(context));
        };
        let context = self.table.get_mut(handle).ok_or(Code::INVALID_CONTEXT)?;
        if let Some(code) = context.dead {
            return Err(code);
        }
        context.retained += 1;
        Ok(handle)
    }

    /// Gives one retention back. The context, if that was the last one: it is to be destroyed.
    pub(crate) fn release(&mut self, device: u32) -> Result<Option<Handle>, Code> {
        let handle = self.primary(device).ok_or(Code::INVALID_CONTEXT)?;
        let context = self.table.get_mut(handle).ok_or(Code::INVALID_CONTEXT)?;
        context.retained -= 1;
        Ok((context.retained == 0).then_some(handle))
    }

    /// What is on top of this thread's stack, whether it lives or not.
    pub(crate) fn top(&self) -> Option<Handle> {
        self.stacks.get(&thread_number()).and_then(|stack| stack.last().copied())
    }

    pub(crate) fn push(&mut self, handle: Handle) {
        self.stacks.entry(thread_number()).or_default().push(handle);
    }

    pub(crate) fn pop(&mut self) -> Option<Handle> {
        let number = thread_number();
        let stack = self.stacks.get_mut(&number)?;
        let handle = stack.pop();
        if stack.is_empty() {
            self.stacks.remove(&number);
        }
        handle
    }

    /// How many contexts are on stacks, of all threads that were ever there.
    pub(crate) fn pushed(&self) -> u64 {
        self.stacks.values().map(|stack| stack.len() as u64).sum()
    }

    /// Whether some thread has it on its stack.
    pub(crate) fn is_pushed(&self, handle: Handle) -> bool {
        self.stacks.values().flatten().any(|pushed| *pushed == handle)
    }

    /// The current context, if it can be used for this.
    pub(crate) fn current(&self, call: Call) -> Result<Handle, Code> {
        let handle = self.top().ok_or(Code::INVALID_CONTEXT)?;
        self.check(handle, call)?;
        Ok(handle)
    }

    /// Whether the context can be used for this.
    pub(crate) fn check(&self, handle: Handle, call: Call) -> Result<(), Code> {
        let context = self.table.get(handle).ok_or(Code::CONTEXT_IS_DESTROYED)?;
        match context.dead {
            Some(code) if !call.works_on_the_dead() => Err(code),
            _ => Ok(()),
        }
    }

    pub(crate) fn reset(&mut self) {
        self.table.reset();
        self.stacks.clear();
    }
}
