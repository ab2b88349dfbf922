//! The configuration file: written by a person, who makes mistakes.

use std::path::Path;
use undercroft_kvstore::Config;

/// A configuration's text.
pub fn config(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    match Config::parse(text, Path::new("config.toml")) {
        Ok(config) => assert!(!config.summary().is_empty()),
        Err(error) => {
            let line = error.to_string();
            assert!(!line.is_empty());
            assert!(!line.contains('\n'), "an error is one line: {line:?}");
        }
    }
}

/// The example, and a file with every key at the default the reference names.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let example = include_str!("../../systemd/config.toml");
    let mut whole = String::new();
    let mut table = "";
    for key in undercroft_kvstore::KEYS {
        let value: bool = key.default.starts_with('"') || key.default.parse::<u64>().is_ok();
        let Some((section, name)) = key.name.split_once('.').filter(|_| value) else {
            continue;
        };
        if section != table {
            table = section;
            whole.push_str(&format!("[{section}]\n"));
        }
        whole.push_str(&format!("{name} = {}\n", key.default));
    }
    vec![Vec::new(), example.as_bytes().to_vec(), whole.into_bytes()]
}
