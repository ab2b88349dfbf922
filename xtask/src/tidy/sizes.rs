//! How long a function and an inline test module may be.

use super::Finding;
use super::sources::{Source, is_test};
use proc_macro2::Span;
use syn::visit::{self, Visit};
use syn::{Attribute, Block, ImplItemFn, ItemFn, ItemMod, Signature, TraitItemFn};

/// The longest function, lines from `fn` to its closing brace. Docs and attributes are free.
const FUNCTION_LINES: usize = 70;
/// The longest function of a test module: a scenario reads best in one piece.
const TEST_FUNCTION_LINES: usize = 150;
/// The longest test module that may stay beside the code.
const TEST_MODULE_LINES: usize = 150;

pub(super) fn check(source: &Source) -> Vec<Finding> {
    let mut sizes = Sizes { path: &source.path, in_test: source.is_test, findings: Vec::new() };
    sizes.visit_file(&source.syntax);
    sizes.findings
}

struct Sizes<'a> {
    path: &'a str,
    in_test: bool,
    findings: Vec<Finding>,
}

impl Sizes<'_> {
    fn function(&mut self, attributes: &[Attribute], signature: &Signature, block: &Block) {
        let start = signature_start(signature);
        let lines = lines(start, block.brace_token.span.close());
        let test = self.in_test || is_test(attributes);
        let limit = if test { TEST_FUNCTION_LINES } else { FUNCTION_LINES };
        if lines > limit {
            let what = format!("fn {} of {lines} lines", signature.ident);
            let at = start.start().line;
            self.findings.push(Finding::new(self.path, at, what, format!("{limit} lines")));
        }
    }
}

impl<'ast> Visit<'ast> for Sizes<'_> {
    fn visit_item_fn(&mut self, function: &'ast ItemFn) {
        self.function(&function.attrs, &function.sig, &function.block);
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast ImplItemFn) {
        self.function(&function.attrs, &function.sig, &function.block);
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_trait_item_fn(&mut self, function: &'ast TraitItemFn) {
        if let Some(block) = &function.default {
            self.function(&function.attrs, &function.sig, block);
        }
        visit::visit_trait_item_fn(self, function);
    }

    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        let outside = self.in_test;
        if is_test(&module.attrs) {
            self.in_test = true;
            if let Some((brace, _)) = &module.content {
                let lines = lines(module.mod_token.span, brace.span.close());
                if lines > TEST_MODULE_LINES {
                    let what = format!("test module {} of {lines} lines", module.ident);
                    let limit = format!("{TEST_MODULE_LINES} lines, more in a sibling file");
                    let at = module.mod_token.span.start().line;
                    self.findings.push(Finding::new(self.path, at, what, limit));
                }
            }
        }
        visit::visit_item_mod(self, module);
        self.in_test = outside;
    }
}

fn signature_start(signature: &Signature) -> Span {
    let qualifier = signature.constness.as_ref().map(|token| token.span);
    let qualifier = qualifier.or(signature.asyncness.as_ref().map(|token| token.span));
    let qualifier = qualifier.or(signature.unsafety.as_ref().map(|token| token.span));
    qualifier.unwrap_or(signature.fn_token.span)
}

fn lines(first: Span, last: Span) -> usize {
    last.end().line.saturating_sub(first.start().line) + 1
}
