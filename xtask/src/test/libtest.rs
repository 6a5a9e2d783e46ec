//! Counting what test programs print. libtest and libtest-mimic print the same lines.

use std::collections::BTreeMap;

/// What became of the tests of one or more programs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Counts {
    passed: usize,
    skipped: usize,
    failures: Vec<String>,
    skips: BTreeMap<String, usize>,
}

impl Counts {
    /// Passed, failed, skipped.
    pub(super) fn numbers(&self) -> (usize, usize, usize) {
        (self.passed, self.failures.len(), self.skipped)
    }

    /// Tests that ran, whatever became of them.
    pub(super) fn ran(&self) -> usize {
        self.passed + self.failures.len()
    }

    pub(super) fn failures(&self) -> &[String] {
        &self.failures
    }

    /// How many tests were skipped for each reason.
    pub(super) fn skip_reasons(&self) -> &BTreeMap<String, usize> {
        &self.skips
    }

    pub(super) fn failed(&mut self, what: String) {
        self.failures.push(what);
    }

    pub(super) fn skip(&mut self, count: usize, reason: &str) {
        if count > 0 {
            self.skipped += count;
            *self.skips.entry(reason.to_owned()).or_default() += count;
        }
    }

    /// A test that libtest took for passed, for it knows nothing else, has in truth been skipped.
    pub(super) fn was_skipped(&mut self, _test: &str, reason: &str) {
        self.passed = self.passed.saturating_sub(1);
        self.skip(1, reason);
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.skipped += other.skipped;
        self.failures.extend(other.failures.iter().cloned());
        for (reason, count) in &other.skips {
            *self.skips.entry(reason.clone()).or_default() += count;
        }
    }
}

/// Reads a stream of test output, line by line.
#[derive(Debug, Default)]
pub(super) struct Reader {
    counts: Counts,
    /// Of the program that runs now: reasons of ignored tests, and failures by name.
    ignored: Vec<String>,
    failed: Vec<String>,
    /// It has announced its tests and not yet told its result.
    open: bool,
}

/// The reason of an ignored test that gives none.
const NO_REASON: &str = "ignored, without a reason";

impl Reader {
    /// A line of stdout.
    pub(super) fn line(&mut self, line: &str) {
        if line.starts_with("running ") && (line.ends_with(" tests") || line.ends_with(" test")) {
            self.close();
            self.open = true;
        } else if let Some(result) = line.strip_prefix("test result: ") {
            self.result(result);
        } else if let Some((name, outcome)) = line.strip_prefix("test ").and_then(|l| l.split_once(" ... ")) {
            match outcome.trim() {
                "FAILED" => self.failed.push(name.trim().to_owned()),
                "ignored" => self.ignored.push(NO_REASON.to_owned()),
                other => self.ignored.extend(other.strip_prefix("ignored, ").map(str::to_owned)),
            }
        }
    }

    /// A line of stderr: programs of ours tell there why they ignore all their tests.
    pub(super) fn error_line(line: &str) -> Option<String> {
        let reason = ["ignored: ", "skipped: "].iter().find_map(|mark| line.split_once(mark))?.1;
        Some(reason.trim().to_owned())
    }

    fn result(&mut self, result: &str) {
        let number = |word: &str| {
            let at = result.find(&format!(" {word}"))?;
            result[..at].rsplit(|c: char| !c.is_ascii_digit()).next()?.parse::<usize>().ok()
        };
        let (Some(passed), Some(failed)) = (number("passed"), number("failed")) else { return };
        self.counts.passed += passed;
        self.failed.resize_with(failed, || "a test that was not named".to_owned());
        let ignored = number("ignored").unwrap_or(0);
        self.ignored.resize_with(ignored, || NO_REASON.to_owned());
        self.open = false;
        self.take_names();
    }

    /// A program that ended without telling its result was killed, or aborted.
    fn close(&mut self) {
        if self.open {
            self.failed.push("a test program ended before its result".to_owned());
            self.open = false;
        }
        self.take_names();
    }

    fn take_names(&mut self) {
        self.counts.failures.append(&mut self.failed);
        for reason in std::mem::take(&mut self.ignored) {
            self.counts.skip(1, &reason);
        }
    }

    /// The counts, when the command has ended; `whole_reason` explains tests that were ignored without a reason.
    pub(super) fn finish(mut self, whole_reason: Option<&str>) -> Counts {
        self.close();
        if let Some(reason) = whole_reason
            && let Some(count) = self.counts.skips.remove(NO_REASON)
        {
            *self.counts.skips.entry(reason.to_owned()).or_default() += count;
        }
        self.counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Counts {
        let mut reader = Reader::default();
        text.lines().for_each(|l| reader.line(l));
        reader.finish(None)
    }

    const LIBTEST: &str = "
running 4 tests
test a::b ... ok
test slow ... ignored, takes an hour
test other ... ignored
test c ... FAILED

failures:

---- c stdout ----
test result: not one of libtest's

failures:
    c

test result: FAILED. 1 passed; 1 failed; 2 ignored; 0 measured; 8 filtered out; finished in 0.27s

running 1 test
test src/lib.rs - wait (line 3) ... ok

test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
";

    #[test]
    fn libtests_lines_are_counted() {
        let counts = read(LIBTEST);
        assert_eq!(counts.numbers(), (2, 1, 2));
        assert_eq!(counts.failures(), ["c"]);
        assert_eq!(counts.skip_reasons().get("takes an hour"), Some(&1));
        assert_eq!(counts.skip_reasons().get(NO_REASON), Some(&1));
    }

    #[test]
    fn libtest_mimics_lines_are_counted() {
        let counts = read(
            "\nrunning 2 tests\ntest crash        ... ok\ntest [unit] life  ... FAILED\n\n\
             test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.10s\n",
        );
        assert_eq!(counts.numbers(), (1, 1, 0));
        assert_eq!(counts.failures(), ["[unit] life"]);
    }

    #[test]
    fn a_program_that_dies_half_way_has_failed() {
        let counts = read("running 3 tests\ntest a ... ok\n");
        assert_eq!(counts.numbers(), (0, 1, 0));
        let counts = read(
            "running 3 tests\ntest a ... ok\nrunning 0 tests\ntest result: ok. 0 passed; 0 failed; 0 ignored\n",
        );
        assert_eq!(counts.numbers(), (0, 1, 0));
    }

    #[test]
    fn skips_at_run_time_did_not_pass() {
        let mut counts =
            read("running 1 test\ntest a ... ok\ntest result: ok. 1 passed; 0 failed; 0 ignored\n");
        assert_eq!(counts.ran(), 1);
        counts.was_skipped("a", "no root");
        assert_eq!(counts.numbers(), (0, 0, 1));
        assert_eq!(counts.ran(), 0);
        assert_eq!(counts.skip_reasons().get("no root"), Some(&1));
    }

    #[test]
    fn a_whole_programs_reason_is_taken_from_stderr() {
        let mut reader = Reader::default();
        assert_eq!(Reader::error_line("   Compiling x"), None);
        let reason = Reader::error_line("net tier: ignored: needs root").unwrap();
        reader.line("running 1 test");
        reader.line("test a ... ignored");
        reader.line("test result: ok. 0 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out");
        let counts = reader.finish(Some(&reason));
        assert_eq!(counts.skip_reasons().get("needs root"), Some(&1));
    }

    #[test]
    fn counts_add_up() {
        let mut total = read(LIBTEST);
        total.add(&read(LIBTEST));
        assert_eq!(total.numbers(), (4, 2, 4));
        assert_eq!(total.skip_reasons().get("takes an hour"), Some(&2));
    }
}
