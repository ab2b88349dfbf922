//! Trace files: JSON Lines, plain or compressed, from anywhere.

use std::cell::RefCell;
use std::io::Write;
use tempfile::NamedTempFile;
use undercroft_benches::TraceReader;

/// A file's content.
pub fn trace(input: &[u8]) {
    thread_local! {
        static FILE: RefCell<NamedTempFile> =
            RefCell::new(NamedTempFile::new().expect("the temporary directory can be written"));
    }
    FILE.with_borrow_mut(|file| {
        rewrite(file, input).expect("a temporary file can be written");
        let Ok(mut reader) = TraceReader::open(file.path()) else {
            return;
        };
        loop {
            match reader.read() {
                Ok(Some(request)) => assert!(request.timestamp.is_finite()),
                Ok(None) => return,
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    return;
                }
            }
        }
    });
}

fn rewrite(file: &mut NamedTempFile, input: &[u8]) -> std::io::Result<()> {
    let file = file.as_file_mut();
    file.set_len(0)?;
    std::io::Seek::rewind(file)?;
    file.write_all(input)
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let line = r#"{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, 48]}"#;
    let other = r#"{"timestamp": 0.5, "input_length": 0, "output_length": 0, "hash_ids": []}"#;
    vec![
        line.as_bytes().to_vec(),
        format!("{line}\n{other}\n\n{line}\n").into_bytes(),
        // A zstd frame that holds "{}\n" raw.
        vec![0x28, 0xb5, 0x2f, 0xfd, 0x20, 3, 0x19, 0, 0, b'{', b'}', b'\n'],
    ]
}
