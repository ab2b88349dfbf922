//! `undercroft inspect`.

mod json;
mod text;

use crate::outcome::{Failure, Outcome, print};
use clap::Args;
use indicatif::ProgressBar;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use undercroft_client::wire::SegmentId;
use undercroft_kvstore::inspect::{
    Damage, InspectError, Inspector, KeyError, RecordFacts, SegmentContents, SegmentFacts,
    Verification, key_beside, page_log,
};

/// Show what lies in a store on SSD, and prove it offline.
///
/// Prints the head of the page log and its segments; with --segment the records of one, with
/// --record one record and whether it proves itself. With --verify every record is read and
/// proved. Nothing is ever written.
///
/// A daemon may be running: what it does meanwhile is seen half done. --verify needs it stopped,
/// because a record that moves looks damaged, and keeps one from starting until it is done.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  undercroft inspect /var/lib/undercroft
  undercroft inspect /var/lib/undercroft --verify
  undercroft inspect /var/lib/undercroft/pages-0.log --segment 3 --record 17
  undercroft inspect /mnt/old/pages-0.log --key /etc/undercroft/old-store.key --json

Without the key of an encrypted store its segments are shown and their records are not.

Exit codes: 0 done, and with --verify or --record everything is whole; 1 something is damaged;
2 it could not start (bad arguments, no page log, no key or the wrong one, --verify beside a
daemon).")]
pub(crate) struct Inspect {
    /// A store's directory, or a page log.
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// The store's key file [default: store.key beside the page log].
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Show the records of this segment.
    #[arg(long, value_name = "N")]
    segment: Option<u32>,
    /// Show this record of the segment, and whether it proves itself.
    #[arg(long, value_name = "N", requires = "segment")]
    record: Option<u32>,
    /// Read every record and let it prove itself.
    #[arg(long, conflicts_with = "segment")]
    verify: bool,
    /// Print JSON (schema 1) instead of text.
    #[arg(long)]
    json: bool,
}

/// What is known of the store's key.
#[derive(Debug)]
enum Key {
    /// Nothing in the store was ever encrypted.
    NotNeeded,
    /// This file has it.
    Fits(PathBuf),
    /// This file would have it, and is not there.
    Missing(PathBuf),
    /// This file cannot be used; why.
    Unusable(String),
}

/// A page log, opened.
#[derive(Debug)]
struct Log {
    inspector: Inspector,
    key: Key,
    in_use: bool,
}

/// What is to be shown of it.
#[derive(Debug)]
enum View {
    Segments(Vec<SegmentFacts>),
    Records(SegmentContents),
    Record { segment: SegmentFacts, record: RecordFacts, damage: Option<Damage> },
    Verified(Vec<SegmentFacts>, Verification),
}

impl Inspect {
    pub(crate) fn run(self) -> Result<Outcome, Failure> {
        let log = self.open()?;
        let view = self.view(&log)?;
        let shown = if self.json { json::show(&log, &view) } else { text::show(&log, &view) };
        print(&shown)?;
        let good = match view {
            View::Segments(_) | View::Records(_) => true,
            View::Record { record, damage, .. } => record.void || damage.is_none(),
            View::Verified(_, verified) => verified.is_good(),
        };
        Ok(if good { Outcome::Good } else { Outcome::Bad })
    }

    fn open(&self) -> Result<Log, Failure> {
        let path = page_log(&self.path);
        let mut inspector = Inspector::open(&path).map_err(failure)?;
        let key = self.find_key(&mut inspector)?;
        // Nobody may write while everything is read; to look at it no daemon is held up.
        let in_use =
            if self.verify { inspector.lock().map(|held| !held) } else { inspector.is_in_use() };
        let in_use = in_use
            .map_err(|error| Failure::start(format!("cannot lock {}: {error}", path.display())))?;
        Ok(Log { inspector, key, in_use })
    }

    fn find_key(&self, inspector: &mut Inspector) -> Result<Key, Failure> {
        let log = inspector.path().to_owned();
        let file = match &self.key {
            Some(file) => file.clone(),
            None if inspector.facts().key_check.is_none() => return Ok(Key::NotNeeded),
            None => key_beside(&log),
        };
        let other = || {
            let (file, log) = (file.display(), log.display());
            format!("{file} is not the key of {log}; allowed is the key it was made with")
        };
        let key = match inspector.use_key_file(&file) {
            Ok(true) => return Ok(Key::Fits(file)),
            Ok(false) => Key::Unusable(other()),
            Err(KeyError::Io { source, .. })
                if self.key.is_none() && source.kind() == ErrorKind::NotFound =>
            {
                Key::Missing(file)
            }
            Err(error) => Key::Unusable(error.to_string()),
        };
        match key {
            // Whoever names a key wants it used.
            Key::Unusable(why) if self.key.is_some() => Err(Failure::start(why)),
            key => Ok(key),
        }
    }

    fn view(&self, log: &Log) -> Result<View, Failure> {
        let inspector = &log.inspector;
        let Some(segment) = self.segment else {
            let segments = inspector.segments().map_err(failure)?;
            if !self.verify {
                return Ok(View::Segments(segments));
            }
            let verified = log.verify(&segments)?;
            return Ok(View::Verified(segments, verified));
        };
        let contents = inspector.segment(SegmentId(segment)).map_err(failure)?;
        let Some(number) = self.record else {
            return Ok(View::Records(contents));
        };
        if contents.facts.page_bytes.is_none() {
            return Err(log.locked("--record"));
        }
        let Some(record) = contents.records.iter().find(|record| record.record == number) else {
            return Err(no_record(inspector.path(), &contents, number));
        };
        let damage = inspector.verify_record(&contents, record).map_err(failure)?;
        Ok(View::Record { segment: contents.facts, record: *record, damage })
    }
}

impl Log {
    fn verify(&self, segments: &[SegmentFacts]) -> Result<Verification, Failure> {
        let path = self.inspector.path().display();
        if self.in_use {
            return Err(Failure::start(format!(
                "{path} is in use by a daemon (one killed a moment ago lets go within seconds): --verify \
                 needs it stopped; `undercroft status` shows what it found damaged"
            )));
        }
        if segments.iter().any(|segment| segment.page_bytes.is_none()) {
            return Err(self.locked("--verify"));
        }
        let bar = ProgressBar::new(segments.len() as u64);
        let verified = self.inspector.verify(|| bar.inc(1)).map_err(failure);
        bar.finish_and_clear();
        verified
    }

    fn locked(&self, what: &str) -> Failure {
        let path = self.inspector.path().display();
        let why = match &self.key {
            Key::Missing(file) => format!("there is no key at {}", file.display()),
            Key::Unusable(why) => why.clone(),
            Key::NotNeeded | Key::Fits(_) => "it has no key".to_owned(),
        };
        Failure::start(format!("{path} is encrypted and {why}: {what} needs it, name it by --key"))
    }
}

fn no_record(path: &Path, contents: &SegmentContents, number: u32) -> Failure {
    let segment = contents.facts.segment;
    let path = path.display();
    Failure::start(match contents.records.last() {
        None => format!("segment {segment} of {path} has no records"),
        Some(last) => format!(
            "segment {segment} of {path} has no record {number}; allowed 0..={}, and there may be gaps",
            last.record
        ),
    })
}

fn failure(error: InspectError) -> Failure {
    match error {
        // It was read, and that is what came of it.
        InspectError::Damaged { .. } | InspectError::Io { .. } => Failure::run(error),
        _ => Failure::start(error),
    }
}
