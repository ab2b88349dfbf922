//! Names that say nothing, and a `lib.rs` that is more than a table of contents.

use super::Finding;
use super::sources::{Source, line};
use crate::tree::File;
use syn::visit::{self, Visit};
use syn::{Item, ItemMod};

/// A module is named by the noun it holds.
const EMPTY_NAMES: &[&str] =
    &["common", "utils", "util", "misc", "helpers", "helper", "v2", "v3", "stuff"];
const NAME_LIMIT: &str = "a module named by the noun it holds";
const CONTENTS_LIMIT: &str = "docs, `mod x;` and `use` in lib.rs";

/// Names of files and directories.
pub(super) fn check(files: &[File]) -> Vec<Finding> {
    files
        .iter()
        .filter(|file| file.path.ends_with(".rs"))
        .filter_map(|file| {
            let stem = file.path.trim_end_matches(".rs");
            let name = stem.split('/').find(|name| EMPTY_NAMES.contains(name))?;
            let what = format!("module called {name}");
            Some(Finding::new(&file.path, 1, what, NAME_LIMIT))
        })
        .collect()
}

/// Names of inline modules, and what stands in `lib.rs`.
pub(super) fn check_source(source: &Source) -> Vec<Finding> {
    let mut names = Names { path: &source.path, findings: Vec::new() };
    names.visit_file(&source.syntax);
    if source.path == "lib.rs" || source.path.ends_with("/lib.rs") {
        let logic = source.syntax.items.iter().filter_map(|item| logic(&source.path, item));
        names.findings.extend(logic);
    }
    names.findings
}

struct Names<'a> {
    path: &'a str,
    findings: Vec<Finding>,
}

impl<'ast> Visit<'ast> for Names<'_> {
    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        let name = module.ident.to_string();
        // `mod x;` is found by its file's name.
        if module.content.is_some() && EMPTY_NAMES.contains(&name.as_str()) {
            let what = format!("module called {name}");
            self.findings.push(Finding::new(self.path, line(&module.ident), what, NAME_LIMIT));
        }
        visit::visit_item_mod(self, module);
    }
}

fn logic(path: &str, item: &Item) -> Option<Finding> {
    let what = match item {
        Item::Use(_) => return None,
        Item::Mod(module) if module.content.is_none() => return None,
        Item::Mod(module) => format!("module {} with its body", module.ident),
        Item::Fn(function) => format!("fn {}", function.sig.ident),
        Item::Macro(_) => "a macro".to_owned(),
        _ => "an item".to_owned(),
    };
    Some(Finding::new(path, line(item), format!("lib.rs holds {what}"), CONTENTS_LIMIT))
}
