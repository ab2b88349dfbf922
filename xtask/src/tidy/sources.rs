//! Rust files, parsed, and which of them are tests.

use super::Finding;
use crate::tree::File;
use proc_macro2::{TokenStream, TokenTree};
use std::collections::BTreeSet;
use syn::spanned::Spanned;
use syn::{Attribute, Expr, ExprLit, Item, ItemMod, Lit, Meta};

/// A Rust file.
pub(super) struct Source {
    pub(super) path: String,
    pub(super) syntax: syn::File,
    pub(super) tokens: TokenStream,
    /// Whether the whole file is test code.
    pub(super) is_test: bool,
}

/// Parses every Rust file; what does not parse is a finding.
pub(super) fn parse(files: &[File]) -> (Vec<Source>, Vec<Finding>) {
    let mut sources = Vec::new();
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| file.path.ends_with(".rs")) {
        match parse_file(file) {
            Ok(source) => sources.push(source),
            Err(error) => {
                let at = error.span().start().line;
                findings.push(Finding::new(&file.path, at, error.to_string(), "Rust"));
            }
        }
    }
    mark_tests(&mut sources);
    (sources, findings)
}

fn parse_file(file: &File) -> syn::Result<Source> {
    let syntax = syn::parse_file(&file.text)?;
    let tokens = file.text.parse()?;
    let is_test = is_test_path(&file.path);
    Ok(Source { path: file.path.clone(), syntax, tokens, is_test })
}

/// By its place alone: `tests.rs`, or below a directory called `tests`.
fn is_test_path(path: &str) -> bool {
    path.split('/').any(|component| component == "tests" || component == "tests.rs")
}

/// Marks what a `#[cfg(test)] mod x;` brings in, whatever it is called.
fn mark_tests(sources: &mut [Source]) {
    let mut files = BTreeSet::new();
    let mut directories = Vec::new();
    for source in sources.iter() {
        for item in &source.syntax.items {
            if let Item::Mod(module) = item
                && module.content.is_none()
                && is_test(&module.attrs)
            {
                let base = module_base(&source.path, module);
                files.insert(format!("{base}.rs"));
                directories.push(format!("{base}/"));
            }
        }
    }
    for source in sources {
        let inside = directories.iter().any(|directory| source.path.starts_with(directory));
        source.is_test |= inside || files.contains(&source.path);
    }
}

/// Where `mod x;` in the file `path` looks for its file, without the ending.
fn module_base(path: &str, module: &ItemMod) -> String {
    let (directory, file) = path.rsplit_once('/').unwrap_or(("", path));
    if let Some(given) = path_attribute(&module.attrs) {
        return format!("{directory}/{}", given.trim_end_matches(".rs"));
    }
    let stem = file.trim_end_matches(".rs");
    if ["lib", "main", "mod"].contains(&stem) {
        format!("{directory}/{}", module.ident)
    } else {
        format!("{directory}/{stem}/{}", module.ident)
    }
}

/// The value of `#[path = "…"]`.
fn path_attribute(attributes: &[Attribute]) -> Option<String> {
    attributes.iter().find_map(|attribute| match &attribute.meta {
        Meta::NameValue(pair) if pair.path.is_ident("path") => match &pair.value {
            Expr::Lit(ExprLit { lit: Lit::Str(value), .. }) => Some(value.value()),
            _ => None,
        },
        _ => None,
    })
}

/// Whether the attributes say `#[cfg(test)]`, alone or with more conditions.
pub(super) fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        Meta::List(list) if list.path.is_ident("cfg") => {
            mentions(&list.tokens, "test") && !mentions(&list.tokens, "not")
        }
        _ => false,
    })
}

fn mentions(tokens: &TokenStream, word: &str) -> bool {
    tokens.clone().into_iter().any(|token| match token {
        TokenTree::Ident(ident) => ident == word,
        TokenTree::Group(group) => mentions(&group.stream(), word),
        TokenTree::Punct(_) | TokenTree::Literal(_) => false,
    })
}

/// The line where a piece of syntax starts, counted from 1.
pub(super) fn line(node: &impl Spanned) -> usize {
    node.span().start().line
}

/// Calls `each` with every identifier of the tokens and its line, inside macros too.
pub(super) fn each_ident(tokens: &TokenStream, each: &mut impl FnMut(&str, usize)) {
    for token in tokens.clone() {
        match token {
            TokenTree::Ident(ident) => each(&ident.to_string(), ident.span().start().line),
            TokenTree::Group(group) => each_ident(&group.stream(), each),
            TokenTree::Punct(_) | TokenTree::Literal(_) => {}
        }
    }
}
