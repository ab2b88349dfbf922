use super::assembler::Request;
use crate::BenchError;
use serde::Serialize;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

const ZSTD_LEVEL: i32 = 3;

/// A trace being written.
pub(super) struct Writer {
    path: PathBuf,
    output: Target,
}

enum Target {
    Plain(BufWriter<File>),
    Packed(zstd::Encoder<'static, BufWriter<File>>),
}

/// A line. `input_length` is what its pages have room for: the partial block a prompt ends with is
/// never stored.
#[derive(Debug, Serialize)]
struct Line<'a> {
    timestamp: u64,
    input_length: u32,
    output_length: u32,
    hash_ids: &'a [u64],
    domain: u32,
    page_tokens: u32,
}

impl Writer {
    /// Compressed if the name ends in `.zst`.
    pub(super) fn create(path: &Path) -> Result<Self, BenchError> {
        let failed = || BenchError::file("create", path);
        let file = BufWriter::new(File::create(path).map_err(failed())?);
        let output = match path.extension().is_some_and(|extension| extension == "zst") {
            true => Target::Packed(zstd::Encoder::new(file, ZSTD_LEVEL).map_err(failed())?),
            false => Target::Plain(file),
        };
        Ok(Self { path: path.to_owned(), output })
    }

    pub(super) fn write(&mut self, request: &Request) -> Result<(), BenchError> {
        let line = Line {
            timestamp: request.at_ms,
            input_length: (request.pages.len() as u32).saturating_mul(request.page_tokens),
            output_length: 0,
            hash_ids: &request.pages,
            domain: request.domain,
            page_tokens: request.page_tokens,
        };
        let mut text = serde_json::to_vec(&line).expect("a line holds numbers only");
        text.push(b'\n');
        let written = match &mut self.output {
            Target::Plain(file) => file.write_all(&text),
            Target::Packed(packer) => packer.write_all(&text),
        };
        written.map_err(BenchError::file("write", &self.path))
    }

    /// What is buffered is written, and a compressed file is whole.
    pub(super) fn finish(self) -> Result<(), BenchError> {
        let done = match self.output {
            Target::Plain(mut file) => file.flush(),
            Target::Packed(packer) => packer.finish().and_then(|mut file| file.flush()),
        };
        done.map_err(BenchError::file("write", self.path))
    }
}
