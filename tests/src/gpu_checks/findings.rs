use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;

/// What a check found: a table, remarks, and what is wrong.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[must_use]
pub struct Findings {
    columns: Vec<String>,
    rows: Vec<Vec<Value>>,
    notes: Vec<String>,
    wrong: Vec<String>,
    missing: Option<String>,
}

/// How a check ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All is well.
    Passed,
    /// What is wrong.
    Failed(Vec<String>),
    /// What this machine lacks for it.
    CouldNotRun(String),
}

impl Findings {
    /// With a table of these columns.
    pub(super) fn with_columns(columns: &[&str]) -> Self {
        let columns = columns.iter().map(|&column| column.to_owned()).collect();
        Self { columns, ..Self::default() }
    }

    /// A check for which something is missing.
    pub(super) fn could_not_run(why: impl Into<String>) -> Self {
        Self { missing: Some(why.into()), ..Self::default() }
    }

    /// A row of the table: a cell for each column.
    pub(super) fn row<const CELLS: usize>(&mut self, cells: [Value; CELLS]) {
        assert_eq!(CELLS, self.columns.len(), "a cell for each column");
        self.rows.push(cells.into());
    }

    /// Something worth knowing.
    pub(super) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Something that makes the check fail.
    pub(super) fn wrong(&mut self, what: impl Into<String>) {
        self.wrong.push(what.into());
    }

    /// Something that this machine lacks: what was found says less than it should.
    pub(super) fn missing(&mut self, why: impl Into<String>) {
        self.missing = Some(why.into());
    }

    /// How the check ended.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match &self.missing {
            _ if !self.wrong.is_empty() => Outcome::Failed(self.wrong.clone()),
            Some(why) => Outcome::CouldNotRun(why.clone()),
            None => Outcome::Passed,
        }
    }

    /// For a reader that is a program: an object for each row.
    pub(super) fn json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            let cells = self.columns.iter().cloned().zip(row.iter().cloned());
            Value::Object(cells.collect())
        });
        serde_json::json!({ "rows": rows.collect::<Vec<_>>(), "notes": self.notes })
    }

    /// For a reader that is a person.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for line in self.lines() {
            text.push_str(line.trim_end());
            text.push('\n');
        }
        for note in &self.notes {
            text.push_str(&format!("  {note}\n"));
        }
        text
    }

    /// The table, each column as wide as its widest cell; numbers stand below each other.
    fn lines(&self) -> Vec<String> {
        if self.rows.is_empty() {
            return Vec::new();
        }
        let mut lines = vec![String::new(); self.rows.len() + 1];
        for (column, name) in self.columns.iter().enumerate() {
            let cells = || self.rows.iter().map(|row| &row[column]);
            let shown: Vec<String> = [name.clone()].into_iter().chain(cells().map(shown)).collect();
            let width = shown.iter().map(|cell| cell.chars().count()).max().unwrap_or(0);
            let is_number = cells().all(|cell| cell.is_number() || cell.is_null());
            for (line, cell) in lines.iter_mut().zip(shown) {
                if is_number {
                    line.push_str(&format!("  {cell:>width$}"));
                } else {
                    line.push_str(&format!("  {cell:<width$}"));
                }
            }
        }
        lines
    }
}

/// Three digits are as much as these measurements say.
fn shown(cell: &Value) -> String {
    match cell {
        Value::String(text) => text.clone(),
        Value::Number(number) if number.is_f64() => match number.as_f64().unwrap_or(0.0) {
            value if value.abs() >= 100.0 => format!("{value:.0}"),
            value if value.abs() >= 10.0 => format!("{value:.1}"),
            value => format!("{value:.2}"),
        },
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => write!(f, "passed"),
            Self::Failed(wrong) => write!(f, "FAILED: {}", wrong.join("; ")),
            Self::CouldNotRun(why) => write!(f, "could not run: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_wrong_counts_before_what_is_missing() {
        let mut findings = Findings::could_not_run("no luck");
        assert_eq!(findings.outcome(), Outcome::CouldNotRun("no luck".to_owned()));
        findings.wrong("a byte");
        assert_eq!(findings.outcome(), Outcome::Failed(vec!["a byte".to_owned()]));
        assert_eq!(Findings::default().outcome(), Outcome::Passed);
    }

    #[test]
    fn a_table_stands_in_columns_and_its_rows_are_objects() {
        let mut findings = Findings::with_columns(&["mode", "GB/s", "wrong"]);
        findings.row([json!("kernel"), json!(51.26), json!(0)]);
        findings.row([json!("2d"), Value::Null, json!(12)]);
        findings.note("by auto: kernel");
        let expected = "  mode    GB/s  wrong\n  kernel  51.3      0\n  2d         -     12\n  \
            by auto: kernel\n";
        assert_eq!(findings.text(), expected);
        assert_eq!(findings.json()["rows"][0]["GB/s"], json!(51.26));
    }
}
