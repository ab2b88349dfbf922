//! `core` decides and does nothing else: no clock, no I/O, no threads, no chance.

use super::Finding;
use super::sources::{Source, each_ident, is_test};
use syn::visit::{self, Visit};
use syn::{Ident, Item, ItemMod, Macro, Path, UseTree};

/// Where the rule holds. Tests of the crate are free.
const PURE: &str = "kvstore/core/src/";
/// Words that stand for something impure wherever they are used.
const WORDS: &[&str] = &["Instant", "SystemTime", "tokio", "rand"];
/// Modules of `std` that stand for something impure.
const MODULES: &[&str] = &["fs", "net", "thread", "io", "env", "process", "os"];
const LIMIT: &str = "time, bytes and chance reach core as arguments";

pub(super) fn check(source: &Source) -> Vec<Finding> {
    if source.is_test || !source.path.starts_with(PURE) {
        return Vec::new();
    }
    let mut purity = Purity { path: &source.path, findings: Vec::new() };
    purity.visit_file(&source.syntax);
    purity.findings
}

struct Purity<'a> {
    path: &'a str,
    findings: Vec<Finding>,
}

impl Purity<'_> {
    fn found(&mut self, what: &str, line: usize) {
        self.findings.push(Finding::new(self.path, line, format!("core names {what}"), LIMIT));
    }

    fn word(&mut self, word: &str, line: usize) {
        if WORDS.contains(&word) {
            self.found(word, line);
        }
    }

    fn module(&mut self, first: &Ident, second: &Ident) {
        if first == "std" && MODULES.contains(&second.to_string().as_str()) {
            self.found(&format!("std::{second}"), second.span().start().line);
        }
    }

    /// The second component of every path a `use` brings in, `use std::{fs, …}` included.
    fn second(&mut self, first: &Ident, tree: &UseTree) {
        match tree {
            UseTree::Path(path) => self.module(first, &path.ident),
            UseTree::Name(name) => self.module(first, &name.ident),
            UseTree::Rename(rename) => self.module(first, &rename.ident),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.second(first, tree)),
            UseTree::Glob(_) => {}
        }
    }
}

impl<'ast> Visit<'ast> for Purity<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        if !matches!(item, Item::Fn(function) if is_test(&function.attrs)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        if !is_test(&module.attrs) {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_ident(&mut self, ident: &'ast Ident) {
        self.word(&ident.to_string(), ident.span().start().line);
    }

    fn visit_use_tree(&mut self, tree: &'ast UseTree) {
        if let UseTree::Path(path) = tree {
            self.second(&path.ident, &path.tree);
        }
        visit::visit_use_tree(self, tree);
    }

    fn visit_path(&mut self, path: &'ast Path) {
        let mut segments = path.segments.iter();
        if let (Some(first), Some(second)) = (segments.next(), segments.next()) {
            self.module(&first.ident, &second.ident);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, called: &'ast Macro) {
        // What stands inside a macro call is not parsed: only its words are looked at.
        each_ident(&called.tokens, &mut |word, line| self.word(word, line));
        visit::visit_macro(self, called);
    }
}
