use crate::BenchError;
use serde::Deserialize;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// The longest line read into memory: 65,536 ids of 20 digits with their commas, four times over.
const MAX_LINE_BYTES: u64 = 8 << 20;
/// First bytes of a zstd frame (RFC 8878).
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// `zstd --long=27`, the largest window the command line tool reads without being told.
const ZSTD_WINDOW_LOG: u32 = 27;
const FIELDS: &str = "timestamp, input_length, output_length and hash_ids";

/// One line of a trace, in the published Mooncake format. Other fields are ignored.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct RawRequest {
    /// Arrival, milliseconds from the start of the trace.
    pub timestamp: f64,
    /// Prompt length, tokens.
    pub input_length: u32,
    /// Answer length, tokens.
    pub output_length: u32,
    /// The prompt's blocks in prefix order; equal ids mean equal whole prefixes.
    pub hash_ids: Vec<u64>,
}

/// Reads a trace line by line, in constant memory.
pub struct TraceReader {
    path: PathBuf,
    input: Box<dyn BufRead>,
    line: u64,
    text: String,
}

impl TraceReader {
    /// Opens a trace; whether it is compressed is seen from its first bytes, not from its name.
    ///
    /// # Errors
    /// The file cannot be opened or read.
    pub fn open(path: &Path) -> Result<Self, BenchError> {
        let file = File::open(path).map_err(BenchError::file("open", path))?;
        let mut file = BufReader::with_capacity(256 << 10, file);
        let head = file.fill_buf().map_err(BenchError::file("read", path))?;
        let input: Box<dyn BufRead> = if head.starts_with(&ZSTD_MAGIC) {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(file)
                .map_err(BenchError::file("read", path))?;
            decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(BenchError::file("read", path))?;
            Box::new(BufReader::with_capacity(256 << 10, decoder))
        } else {
            Box::new(file)
        };
        Ok(Self { path: path.to_owned(), input, line: 0, text: String::new() })
    }

    /// The next request; `None` at the end. Empty lines are skipped.
    ///
    /// # Errors
    /// The file cannot be read on, or the line is not a request.
    pub fn read(&mut self) -> Result<Option<RawRequest>, BenchError> {
        loop {
            self.line += 1;
            self.text.clear();
            let taken = (&mut self.input).take(MAX_LINE_BYTES).read_line(&mut self.text);
            let taken = taken.map_err(|e| self.problem(format!("cannot be read: {e}")))?;
            if taken == 0 {
                return Ok(None);
            }
            if taken as u64 == MAX_LINE_BYTES && !self.text.ends_with('\n') {
                return Err(self.problem(format!("longer than {MAX_LINE_BYTES} bytes")));
            }
            let text = self.text.trim();
            if !text.is_empty() {
                return serde_json::from_str(text).map(Some).map_err(|e| {
                    self.problem(format!("not a request ({e}): expected an object with {FIELDS}"))
                });
            }
        }
    }

    /// An error about the line read last.
    #[must_use]
    pub fn problem(&self, problem: String) -> BenchError {
        BenchError::TraceLine { path: self.path.clone(), line: self.line, problem }
    }
}
