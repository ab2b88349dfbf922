//! Who may depend on whom, held against `cargo metadata`. Direct dependencies only.

use super::Finding;
use crate::command::cargo;
use crate::tree::File;
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::path::Path;

/// A crate and the workspace crates its manifest may name, in any kind of dependency.
const ARROWS: &[(&str, &[&str])] = &[
    ("wire", &[]),
    ("arena", &["wire"]),
    ("ssd-tier", &["arena", "wire"]),
    ("gpu-shim", &["arena", "wire"]),
    ("core", &["wire"]),
    ("client", &["gpu-shim", "arena", "wire"]),
    ("ffi", &["client", "gpu-shim", "wire"]),
    ("kvstore", &["core", "ssd-tier", "arena", "wire"]),
    ("benches", &["client", "gpu-shim", "core", "wire"]),
    ("cli", &["kvstore", "client", "benches"]),
    ("python", &["client", "gpu-shim", "wire"]),
    ("stand-in", &[]),
    ("xtask", &[]),
];

/// What a crate may name beside its arrows where it does not ship with it: in dev-dependencies.
const DEV_ARROWS: &[(&str, &[&str])] = &[("gpu-shim", &["stand-in"])];

/// Crates that may name any other: black-box tests.
const ABOVE_ALL: &[&str] = &["tests"];

/// Outside crates that a crate must not ship with: each would bring a clock, an I/O layer, a
/// runtime or a driver where design says there is none. Dev-dependencies are free.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("wire", &["tokio", "mio", "rustix", "libc", "nix", "rand", "tracing", "crossbeam-channel"]),
    (
        "core",
        &[
            "tokio",
            "mio",
            "futures",
            "bytes",
            "rand",
            "getrandom",
            "rustix",
            "libc",
            "nix",
            "memmap2",
            "io-uring",
            "crossbeam-channel",
            "tracing",
        ],
    ),
    ("arena", &["tokio"]),
    ("ssd-tier", &["tokio"]),
    ("gpu-shim", &["tokio"]),
    ("client", &["tokio", "async-std", "smol", "io-uring", "tracing-subscriber"]),
    ("kvstore", &["pyo3", "cudarc"]),
];

const PREFIX: &str = "undercroft-";
const DEFAULT_MEMBERS: &[&str] = &["undercroft-cli"];

/// What `cargo metadata --no-deps` says, as far as tidy reads it.
#[derive(Debug, Deserialize)]
pub(super) struct Workspace {
    packages: Vec<Package>,
    workspace_default_members: Vec<String>,
    workspace_root: String,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    id: String,
    manifest_path: String,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    /// `dev`, `build`, or none for an ordinary one.
    kind: Option<String>,
    features: Vec<String>,
    /// Set for a crate of this workspace.
    path: Option<String>,
}

impl Workspace {
    pub(super) fn read(root: &Path) -> Result<Self> {
        let output = cargo(root)
            .args(["metadata", "--no-deps", "--format-version", "1"])
            .output()
            .context("cannot start `cargo metadata`")?;
        if !output.status.success() {
            bail!("`cargo metadata` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Self::parse(&output.stdout)
    }

    pub(super) fn parse(json: &[u8]) -> Result<Self> {
        serde_json::from_slice(json).context("cannot read the output of `cargo metadata`")
    }
}

/// Checks every package of the workspace. `files` only serve to find the line to name.
pub(super) fn check(workspace: &Workspace, files: &[File]) -> Vec<Finding> {
    let mut findings = check_default_members(workspace, files);
    for package in &workspace.packages {
        let manifest = relative(&workspace.workspace_root, &package.manifest_path);
        let text = files.iter().find(|file| file.path == manifest).map_or("", |file| &file.text);
        let place = Place { manifest: &manifest, text };
        findings.extend(check_name(package, &place));
        findings.extend(check_package(package, &place));
    }
    findings
}

/// A manifest and its text.
struct Place<'a> {
    manifest: &'a str,
    text: &'a str,
}

impl Place<'_> {
    /// A finding at the first line that starts with `word`, or else at the first line.
    fn finding(&self, word: &str, what: String, limit: impl Into<String>) -> Finding {
        Finding::new(self.manifest, line_of(self.text, word), what, limit)
    }
}

/// The first line that starts with `word`, counted from 1; 1 if there is none.
pub(super) fn line_of(text: &str, word: &str) -> usize {
    text.lines().position(|line| line.trim_start().starts_with(word)).map_or(1, |index| index + 1)
}

fn relative(root: &str, path: &str) -> String {
    path.strip_prefix(root).unwrap_or(path).trim_start_matches('/').to_owned()
}

fn check_default_members(workspace: &Workspace, files: &[File]) -> Vec<Finding> {
    let is_default = |package: &&Package| workspace.workspace_default_members.contains(&package.id);
    let defaults = workspace.packages.iter().filter(is_default);
    let found: Vec<&str> = defaults.map(|package| package.name.as_str()).collect();
    if found == DEFAULT_MEMBERS {
        return Vec::new();
    }
    let text = files.iter().find(|file| file.path == "Cargo.toml").map_or("", |file| &file.text);
    let place = Place { manifest: "Cargo.toml", text };
    let what = format!("default members are {}", found.join(", "));
    vec![place.finding("default-members", what, DEFAULT_MEMBERS.join(", "))]
}

fn check_name(package: &Package, place: &Place<'_>) -> Option<Finding> {
    let directory = place.manifest.rsplit('/').nth(1).unwrap_or_default();
    let wanted = format!("{PREFIX}{directory}");
    let what = format!("package is called {}", package.name);
    (package.name != wanted).then(|| place.finding("name", what, wanted))
}

fn check_package(package: &Package, place: &Place<'_>) -> Vec<Finding> {
    let crate_name = package.name.strip_prefix(PREFIX).unwrap_or(&package.name);
    let arrows = ARROWS.iter().find(|(name, _)| *name == crate_name).map(|(_, below)| *below);
    let above_all = ABOVE_ALL.contains(&crate_name);
    let mut findings = Vec::new();
    if arrows.is_none() && !above_all {
        let what = format!("{} has no arrows", package.name);
        findings.push(place.finding("name", what, "the crates listed in xtask/src/tidy/arrows.rs"));
    }
    let forbidden = FORBIDDEN.iter().find(|(name, _)| *name == crate_name);
    let forbidden = forbidden.map_or(&[][..], |(_, outside)| *outside);
    for dependency in &package.dependencies {
        let ships = dependency.kind.as_deref() != Some("dev");
        if dependency.path.is_some() {
            let below = dependency.name.strip_prefix(PREFIX).unwrap_or(&dependency.name);
            let tested_with = !ships && is_dev_arrow(crate_name, below);
            if !above_all && !tested_with && arrows.is_some_and(|arrows| !arrows.contains(&below)) {
                let what = format!("{crate_name} depends on {below}");
                let allowed = arrows.filter(|arrows| !arrows.is_empty());
                let limit =
                    allowed.map_or_else(|| "no crate".to_owned(), |arrows| arrows.join(", "));
                findings.push(place.finding(&dependency.name, what, limit));
            }
            findings.extend(check_features(dependency, place, ships));
        } else if ships && forbidden.contains(&dependency.name.as_str()) {
            let what = format!("{crate_name} depends on {}", dependency.name);
            let limit = format!("none of {}", forbidden.join(", "));
            findings.push(place.finding(&dependency.name, what, limit));
        }
    }
    findings
}

fn is_dev_arrow(crate_name: &str, below: &str) -> bool {
    DEV_ARROWS.iter().any(|(name, arrows)| *name == crate_name && arrows.contains(&below))
}

/// Production code never switches on what exists for tests.
fn check_features(dependency: &Dependency, place: &Place<'_>, ships: bool) -> Option<Finding> {
    let feature = dependency.features.iter().find(|feature| feature.contains("test"))?;
    let what = format!("feature {feature} of {} outside dev-dependencies", dependency.name);
    ships.then(|| place.finding(&dependency.name, what, "testing features in dev-dependencies"))
}
