//! One table of versions and one table of lints: a crate's manifest points at the workspace's.

use super::Finding;
use super::arrows::line_of;
use crate::tree::File;
use toml::{Table, Value};

/// Manifests of workspaces of their own, which cannot inherit.
const OUTSIDE: &[&str] = &["Cargo.toml", "client/examples/candle/Cargo.toml", "fuzz/Cargo.toml"];
/// Package fields that come from the workspace.
const INHERITED_FIELDS: &[&str] = &["version", "edition", "rust-version", "license", "publish"];
/// What may stand beside `workspace = true` in a dependency: a crate may ask for more of a
/// dependency, never for another one.
const DEPENDENCY_FIELDS: &[&str] = &["workspace", "features", "optional"];
const DEPENDENCY_TABLES: &[&str] = &["dependencies", "dev-dependencies", "build-dependencies"];

pub(super) fn check(files: &[File]) -> Vec<Finding> {
    files
        .iter()
        .filter(|file| file.path.ends_with("/Cargo.toml") && !OUTSIDE.contains(&&*file.path))
        .flat_map(check_manifest)
        .collect()
}

fn check_manifest(file: &File) -> Vec<Finding> {
    let manifest: Table = match file.text.parse() {
        Ok(manifest) => manifest,
        Err(error) => {
            let what = format!("cannot be read: {error}");
            return vec![Finding::new(&file.path, 1, what, "TOML")];
        }
    };
    let mut findings = Vec::new();
    if !inherits(manifest.get("lints")) {
        let line = line_of(&file.text, "[lints");
        let what = "lints are not the workspace's";
        findings.push(Finding::new(&file.path, line, what, "[lints] workspace = true"));
    }
    let package = manifest.get("package").and_then(Value::as_table);
    for field in INHERITED_FIELDS {
        if !inherits(package.and_then(|package| package.get(*field))) {
            let line = line_of(&file.text, field);
            let what = format!("package.{field} is not the workspace's");
            findings.push(Finding::new(
                &file.path,
                line,
                what,
                format!("{field}.workspace = true"),
            ));
        }
    }
    for (name, dependency) in dependencies(&manifest) {
        let only = dependency.as_table().is_some_and(|fields| {
            fields.keys().all(|field| DEPENDENCY_FIELDS.contains(&field.as_str()))
        });
        if !(inherits(Some(dependency)) && only) {
            let line = line_of(&file.text, name);
            let what = format!("dependency {name} does not come from the workspace's table");
            findings.push(Finding::new(&file.path, line, what, format!("{name}.workspace = true")));
        }
    }
    findings
}

fn inherits(value: Option<&Value>) -> bool {
    let field = value.and_then(Value::as_table).and_then(|table| table.get("workspace"));
    field.and_then(Value::as_bool) == Some(true)
}

/// Every dependency of every kind, those of `[target.…]` included.
fn dependencies(manifest: &Table) -> Vec<(&String, &Value)> {
    let targets = manifest.get("target").and_then(Value::as_table);
    let per_target = targets.into_iter().flat_map(Table::values).filter_map(Value::as_table);
    std::iter::once(manifest)
        .chain(per_target)
        .flat_map(|table| DEPENDENCY_TABLES.iter().filter_map(|kind| table.get(*kind)))
        .filter_map(Value::as_table)
        .flatten()
        .collect()
}
