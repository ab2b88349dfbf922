//! Does the simulator find bugs? `cargo xtask mutants` plants some and looks.

use crate::command::{cargo, check, target_directory};
use crate::tree;
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Which bugs there are.
const TABLE: &str = "tests/mutants.toml";
/// A simulator that takes longer has lost its way.
const PATIENCE: Duration = Duration::from_secs(900);
/// How the copy is built: at once rather than well.
const PROFILE: [(&str, &str); 5] = [
    ("CARGO_PROFILE_RELEASE_LTO", "off"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "false"),
    ("CARGO_PROFILE_RELEASE_INCREMENTAL", "true"),
];

/// What is asked for.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Wish {
    /// Seeds in which a bug must be found
    #[arg(long, default_value_t = 10_000)]
    seeds: u64,
    /// Seeds that must run clean before any bug is planted
    #[arg(long, default_value_t = 500)]
    clean: u64,
    /// Plants only bugs with this in their names
    #[arg(long)]
    only: Option<String>,
}

/// A bug to be planted.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutant {
    name: String,
    /// What is wrong with it, for people.
    bug: String,
    /// Relative to the workspace root.
    file: String,
    find: String,
    replace: String,
}

impl Mutant {
    /// The file with the bug in it.
    ///
    /// # Errors
    /// What is to be replaced does not stand there exactly once: the code has gone on, and the
    /// table must follow.
    fn plant(&self, text: &str) -> Result<String> {
        let Self { name, file, find, replace, .. } = self;
        let count = text.matches(find.as_str()).count();
        ensure!(count == 1, "{TABLE}: {name}: its text stands {count} times in {file}, not once");
        Ok(text.replacen(find, replace, 1))
    }
}

fn mutants(root: &Path) -> Result<Vec<Mutant>> {
    #[derive(Deserialize)]
    struct Table {
        mutant: Vec<Mutant>,
    }
    let text = std::fs::read_to_string(root.join(TABLE))
        .with_context(|| format!("cannot read {TABLE}"))?;
    let table: Table = toml::from_str(&text).with_context(|| format!("cannot read {TABLE}"))?;
    Ok(table.mutant)
}

/// The copy that bugs are planted in, and what is built from it.
struct Nursery {
    tree: PathBuf,
    build: PathBuf,
}

/// How the simulator ended.
enum Outcome {
    Clean,
    /// The seed that failed, and why.
    Found(String),
}

/// Plants one bug after another in a copy of the sources, and runs seeds of the simulator until
/// one of them fails.
///
/// # Errors
/// A bug was not found, could not be planted or built, or there is one that nobody planted.
pub(crate) fn run(root: &Path, wish: &Wish) -> Result<()> {
    let chosen = |mutant: &Mutant| wish.only.as_ref().is_none_or(|only| mutant.name.contains(only));
    let mutants: Vec<Mutant> = mutants(root)?.into_iter().filter(chosen).collect();
    ensure!(!mutants.is_empty(), "no bug is called that");
    let start = Instant::now();
    let nursery = Nursery::new(root)?;
    if let Outcome::Found(what) = nursery.simulate(wish.clean)? {
        bail!("a bug that nobody planted: {what}");
    }
    println!("{} seeds are clean without a bug\n", wish.clean);
    let mut missed = Vec::new();
    for mutant in &mutants {
        let path = nursery.tree.join(&mutant.file);
        let sound = read(&path)?;
        write(&path, &mutant.plant(&sound)?)?;
        let outcome = nursery.simulate(wish.seeds).with_context(|| mutant.name.clone());
        write(&path, &sound)?;
        println!("{}: {}", mutant.name, mutant.bug);
        match outcome? {
            Outcome::Found(what) => println!("    found by {what}\n"),
            Outcome::Clean => {
                println!("    NOT FOUND in {} seeds\n", wish.seeds);
                missed.push(mutant.name.as_str());
            }
        }
    }
    let seconds = start.elapsed().as_secs();
    println!("{} of {} bugs found, {seconds} s", mutants.len() - missed.len(), mutants.len());
    ensure!(missed.is_empty(), "not found: {}", missed.join(", "));
    Ok(())
}

impl Nursery {
    /// Copies what has changed since the last time: what has not is not built again.
    fn new(root: &Path) -> Result<Self> {
        let home = target_directory(root)?.join("mutants");
        let nursery = Self { tree: home.join("tree"), build: home.join("build") };
        let files = tree::load(root)?;
        for file in &files {
            let path = nursery.tree.join(&file.path);
            if std::fs::read(&path).is_ok_and(|text| text == file.text.as_bytes()) {
                continue;
            }
            let directory = path.parent().context("a file lies in a directory")?;
            std::fs::create_dir_all(directory)
                .with_context(|| format!("cannot make {}", directory.display()))?;
            write(&path, &file.text)?;
        }
        for old in tree::load(&nursery.tree)? {
            if files.binary_search_by(|file| file.path.cmp(&old.path)).is_err() {
                let path = nursery.tree.join(&old.path);
                std::fs::remove_file(&path)
                    .with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        Ok(nursery)
    }

    /// Builds the simulator as the copy has it, and runs so many seeds or until one fails.
    fn simulate(&self, seeds: u64) -> Result<Outcome> {
        let mut build = cargo(&self.tree);
        build.args(["build", "--quiet", "--locked", "--offline", "--release"]);
        build.args(["--package", "undercroft-tests", "--bin", "simulate"]);
        build.env("CARGO_TARGET_DIR", &self.build).envs(PROFILE).env("RUSTFLAGS", "-Awarnings");
        check(&mut build)?;
        let output = self.build.join("simulate.txt");
        let file = std::fs::File::create(&output)
            .with_context(|| format!("cannot make {}", output.display()))?;
        let mut simulator = Command::new(self.build.join("release").join("simulate"));
        simulator.args(["--failures", "1", "--seeds", &seeds.to_string()]);
        let mut child = simulator.stdout(file).stderr(Stdio::null()).spawn()?;
        let start = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if start.elapsed() > PATIENCE {
                child.kill()?;
                child.wait()?;
                bail!("the simulator does not come to an end");
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        let said = read(&output)?;
        if let Some(at) = said.find("\nseed ") {
            let failure = said[at + 1..].split("\n  again:").next().unwrap_or_default();
            return Ok(Outcome::Found(failure.trim().replace('\n', " ")));
        }
        ensure!(status.success(), "the simulator ended with {status}:\n{said}");
        Ok(Outcome::Clean)
    }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;

    #[test]
    fn every_bug_can_be_planted() {
        let root = tree::workspace_root().unwrap();
        let mutants = mutants(&root).unwrap();
        assert!(mutants.len() >= 5, "five kinds of bugs at least");
        for mutant in mutants {
            let sound = read(&root.join(&mutant.file)).unwrap();
            assert_ne!(mutant.plant(&sound).unwrap(), sound, "{}", mutant.name);
        }
    }

    #[test]
    fn a_text_that_is_gone_or_stands_twice_is_refused() {
        let mutant = |find: &str| Mutant {
            name: "some".to_owned(),
            bug: String::new(),
            file: "some.rs".to_owned(),
            find: find.to_owned(),
            replace: "c".to_owned(),
        };
        assert_eq!(mutant("a").plant("ab").unwrap(), "cb");
        for (find, count) in [("a", 2), ("d", 0)] {
            let error = mutant(find).plant("aba").unwrap_err().to_string();
            assert!(error.contains(&format!("stands {count} times in some.rs")), "{error}");
        }
    }
}
