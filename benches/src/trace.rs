mod blocks;
mod reader;
#[cfg(test)]
mod tests;

use crate::BenchError;
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

pub use reader::{RawRequest, TraceReader};

/// The most pages one request may have: what one message to the daemon may carry.
pub const MAX_REQUEST_PAGES: usize = undercroft_wire::MAX_KEYS;

/// Requests in arrival order whose prompts are named by prefix-block ids, held compactly: the
/// ids are renumbered densely in order of first appearance.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    requests: Vec<Row>,
    pages: Vec<u32>,
    names: Vec<u64>,
    digest: [u8; 32],
}

#[derive(Debug, Clone)]
struct Row {
    timestamp_ms: u64,
    input_tokens: u32,
    output_tokens: u32,
    pages: Range<usize>,
}

/// One request of a [`Trace`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceRequest<'a> {
    /// Arrival, milliseconds from the start of the trace.
    pub timestamp_ms: u64,
    /// Prompt length, tokens.
    pub input_tokens: u32,
    /// Answer length, tokens.
    pub output_tokens: u32,
    /// The prompt's pages in prefix order, numbered densely over the whole trace.
    pub pages: &'a [u32],
}

/// What a trace holds, in figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceStats {
    /// Requests.
    pub requests: u64,
    /// Page references, repeated ones included.
    pub references: u64,
    /// Different pages.
    pub distinct: u64,
    /// Pages of the longest request.
    pub longest: u64,
    /// From the first to the last arrival, milliseconds.
    pub duration_ms: u64,
}

impl Trace {
    /// Reads a whole trace, plain or zstd-compressed JSON Lines.
    ///
    /// # Errors
    /// The file cannot be read, holds no request, or a line of it is not a request; the error
    /// names file, line and what is allowed.
    pub fn open(path: &Path) -> Result<Self, BenchError> {
        let mut reader = TraceReader::open(path)?;
        let mut builder = TraceBuilder::default();
        while let Some(request) = reader.read()? {
            builder.push(&request).map_err(|problem| reader.problem(problem))?;
        }
        let trace = builder.finish();
        if trace.requests.is_empty() {
            let problem = "no requests: expected one JSON object a line".to_owned();
            return Err(BenchError::Trace { path: path.to_owned(), problem });
        }
        Ok(trace)
    }

    /// The requests in arrival order.
    pub fn requests(&self) -> impl ExactSizeIterator<Item = TraceRequest<'_>> {
        (0..self.requests.len()).map(|index| self.request(index))
    }

    /// Request `index`, counted from 0.
    ///
    /// # Panics
    /// If there is no such request.
    #[must_use]
    pub fn request(&self, index: usize) -> TraceRequest<'_> {
        let row = &self.requests[index];
        TraceRequest {
            timestamp_ms: row.timestamp_ms,
            input_tokens: row.input_tokens,
            output_tokens: row.output_tokens,
            pages: &self.pages[row.pages.clone()],
        }
    }

    /// How many requests there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// The id that the trace itself gives page number `page`.
    ///
    /// # Panics
    /// If the trace has no such page.
    #[must_use]
    pub fn name(&self, page: u32) -> u64 {
        self.names[page as usize]
    }

    /// The ids of all distinct pages, by page number.
    #[must_use]
    pub fn names(&self) -> &[u64] {
        &self.names
    }

    /// A digest of all requests, equal for equal traffic only.
    #[must_use]
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// The trace in figures.
    #[must_use]
    pub fn stats(&self) -> TraceStats {
        let arrivals = || self.requests.iter().map(|row| row.timestamp_ms);
        TraceStats {
            requests: self.requests.len() as u64,
            references: self.requests.iter().map(|row| row.pages.len() as u64).sum(),
            distinct: self.names.len() as u64,
            longest: self.requests.iter().map(|row| row.pages.len() as u64).max().unwrap_or(0),
            duration_ms: arrivals().max().unwrap_or(0) - arrivals().min().unwrap_or(0),
        }
    }

    /// Tokens of a full page. The format does not name them; the requests' lengths do. Of several
    /// sizes that fit all requests it is the one that is a power of two.
    ///
    /// # Errors
    /// No size fits them; says why.
    pub fn page_tokens(&self) -> Result<u32, String> {
        blocks::infer(self.requests()).map(blocks::Blocks::tokens)
    }

    /// The same requests without the partial block that a prompt may end with: no longer prompt
    /// can ever use it again. Pages that occur nowhere else are gone from the figures as well.
    ///
    /// # Errors
    /// The tokens of a block cannot be told from the requests' lengths; says why.
    pub fn full_pages_only(&self) -> Result<Self, String> {
        let block = blocks::infer(self.requests())?;
        let mut builder = TraceBuilder::default();
        for request in self.requests() {
            let full = block.full_pages(request.input_tokens, request.pages.len());
            let hash_ids = request.pages[..full].iter().map(|page| self.name(*page)).collect();
            builder.push(&RawRequest {
                timestamp: request.timestamp_ms as f64,
                input_length: request.input_tokens,
                output_length: request.output_tokens,
                hash_ids,
            })?;
        }
        Ok(builder.finish())
    }
}

/// Puts a [`Trace`] together, request by request.
#[derive(Debug)]
pub(crate) struct TraceBuilder {
    trace: Trace,
    numbers: HashMap<u64, u32>,
    /// By page number: the page before it (`None` for a first page). An id names a whole prefix,
    /// so it has one parent for ever.
    parents: Vec<Option<u32>>,
    hasher: blake3::Hasher,
}

impl Default for TraceBuilder {
    fn default() -> Self {
        Self {
            trace: Trace::default(),
            numbers: HashMap::new(),
            parents: Vec::new(),
            hasher: blake3::Hasher::new_derive_key("undercroft bench trace v1"),
        }
    }
}

impl TraceBuilder {
    /// Appends a request, or says what is wrong with it.
    pub(crate) fn push(&mut self, request: &RawRequest) -> Result<(), String> {
        let found = request.hash_ids.len();
        if found > MAX_REQUEST_PAGES {
            return Err(format!("hash_ids has {found} ids, allowed 0..={MAX_REQUEST_PAGES}"));
        }
        let timestamp = request.timestamp;
        if !(0.0..=1e15).contains(&timestamp) {
            return Err(format!("timestamp is {timestamp}, allowed 0..=1e15 milliseconds"));
        }
        let start = self.trace.pages.len();
        let mut parent = None;
        for id in &request.hash_ids {
            let page = self.number(*id, parent)?;
            self.trace.pages.push(page);
            self.hasher.update(&id.to_le_bytes());
            parent = Some(page);
        }
        self.hasher.update(&(found as u64).to_le_bytes());
        self.trace.requests.push(Row {
            timestamp_ms: timestamp as u64,
            input_tokens: request.input_length,
            output_tokens: request.output_length,
            pages: start..self.trace.pages.len(),
        });
        Ok(())
    }

    pub(crate) fn finish(self) -> Trace {
        Trace { digest: *self.hasher.finalize().as_bytes(), ..self.trace }
    }

    fn number(&mut self, id: u64, parent: Option<u32>) -> Result<u32, String> {
        let next = self.parents.len();
        let page = *self.numbers.entry(id).or_insert(next as u32);
        if page as usize == next {
            if page == u32::MAX {
                return Err("more than 4294967295 distinct ids".to_owned());
            }
            self.parents.push(parent);
            self.trace.names.push(id);
        } else if self.parents[page as usize] != parent {
            let name = |page: Option<u32>| match page {
                Some(page) => format!("after {}", self.trace.names[page as usize]),
                None => "first".to_owned(),
            };
            return Err(format!(
                "hash_ids: id {id} stands {} here and {} earlier; an id names a whole prefix, so \
                 it must always follow the same one",
                name(parent),
                name(self.parents[page as usize]),
            ));
        }
        Ok(page)
    }
}
