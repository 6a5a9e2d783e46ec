//! What an answer means for what is already there. Pure (RFC 9110 §13 to §15).

use std::time::{Duration, SystemTime};

use hyper::header::{self, HeaderMap, HeaderName};
use serde::{Deserialize, Serialize};

use super::DownloadError;

/// What tells whether a file on a server is still the same.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Validator {
    pub(super) etag: Option<String>,
    pub(super) last_modified: Option<String>,
}

impl Validator {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let text = |name| Some(headers.get(name)?.to_str().ok()?.to_owned());
        Self { etag: text(header::ETAG), last_modified: text(header::LAST_MODIFIED) }
    }

    /// For If-Range, which takes no weak tag.
    pub(super) fn if_range(&self) -> Option<&str> {
        match &self.etag {
            Some(tag) if !tag.starts_with("W/") => Some(tag),
            _ => self.last_modified.as_deref(),
        }
    }

    /// For a request that wants the file only if it is another one.
    pub(super) fn unless_same(&self) -> Option<(HeaderName, &str)> {
        match (&self.etag, &self.last_modified) {
            (Some(tag), _) => Some((header::IF_NONE_MATCH, tag)),
            (None, Some(date)) => Some((header::IF_MODIFIED_SINCE, date)),
            (None, None) => None,
        }
    }

    /// Whether the other one says of another file. Nothing is said where either says nothing.
    fn differs(&self, other: &Self) -> bool {
        let differ = |a: &Option<String>, b: &Option<String>| matches!((a, b), (Some(a), Some(b)) if a != b);
        match (&self.etag, &other.etag) {
            (Some(_), Some(_)) => differ(&self.etag, &other.etag),
            _ => differ(&self.last_modified, &other.last_modified),
        }
    }
}

/// What is known of the file from earlier answers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) validator: Validator,
    pub(super) total: Option<u64>,
}

/// Why what is there is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Anew {
    /// The file on the server is another one now.
    Changed,
    /// The server gives whole files only.
    NoRanges,
    /// The server gave another part than what was asked for.
    BadRange,
}

impl Anew {
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Changed => "the file on the server has changed; starting anew",
            Self::NoRanges => "the server cannot resume; starting anew",
            Self::BadRange => "the server cannot resume properly; starting anew",
        }
    }
}

/// What to do with an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The body goes on where what is there ends.
    Resumed(Known),
    /// The body is the whole file; with the reason if a part was asked for.
    Whole(Known, Option<Anew>),
    /// Ask again, for the whole file.
    Again(Anew),
    /// What there is, is still the same.
    NotModified,
}

/// Reads the answer to a request for everything from `offset` on, where `known` was known before.
pub(super) fn read(
    status: u16,
    headers: &HeaderMap,
    offset: u64,
    known: &Known,
) -> Result<Answer, DownloadError> {
    let length = number(headers, header::CONTENT_LENGTH);
    let validator = Validator::of(headers);
    match status {
        200 => {
            let changed = known.validator.differs(&validator)
                || matches!((known.total, length), (Some(a), Some(b)) if a != b);
            let why = (offset > 0).then_some(if changed { Anew::Changed } else { Anew::NoRanges });
            Ok(Answer::Whole(Known { validator, total: length }, why))
        }
        206 if offset == 0 => Err(DownloadError::BadAnswer("a part, though the whole was asked for")),
        206 => {
            let Some(range) =
                headers.get(header::CONTENT_RANGE).and_then(|v| content_range(v.to_str().ok()?))
            else {
                return Ok(Answer::Again(Anew::BadRange));
            };
            let other_total = matches!((known.total, range.total), (Some(a), Some(b)) if a != b);
            if known.validator.differs(&validator) || other_total {
                return Ok(Answer::Again(Anew::Changed));
            }
            // A part of the part would look like a truncated file.
            let to_the_end = range.total.is_none_or(|total| range.last.checked_add(1) == Some(total));
            if range.first != offset || !to_the_end {
                return Ok(Answer::Again(Anew::BadRange));
            }
            let total = known.total.or(range.total).or_else(|| range.last.checked_add(1));
            Ok(Answer::Resumed(Known { validator: known.validator.clone(), total }))
        }
        304 => Ok(Answer::NotModified),
        // It has fewer bytes than what is there.
        416 if offset > 0 => Ok(Answer::Again(Anew::Changed)),
        status => Err(DownloadError::Status { status, retry_after: retry_after(headers, SystemTime::now()) }),
    }
}

fn number(headers: &HeaderMap, name: HeaderName) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

#[derive(Debug, PartialEq, Eq)]
struct Range {
    first: u64,
    last: u64,
    total: Option<u64>,
}

/// `bytes 5-9/10`, `bytes 5-9/*`
fn content_range(text: &str) -> Option<Range> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let total = match total.trim() {
        "*" => None,
        n => Some(n.parse().ok()?),
    };
    (first <= last && total.is_none_or(|t| last < t)).then_some(Range { first, last, total })
}

fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    // A moment that has passed: at once.
    Some(httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;
    use proptest::prelude::*;

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        fields.iter().map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_str(v).unwrap())).collect()
    }

    fn known(etag: &str, total: u64) -> Known {
        Known { validator: Validator { etag: Some(etag.into()), last_modified: None }, total: Some(total) }
    }

    #[test]
    fn answers_to_a_resume() {
        let answer = |status, fields: &[(&'static str, &str)]| {
            read(status, &headers(fields), 5, &known("\"a\"", 10)).unwrap()
        };
        assert_eq!(
            answer(206, &[("content-range", "bytes 5-9/10"), ("etag", "\"a\"")]),
            Answer::Resumed(known("\"a\"", 10))
        );
        assert_eq!(answer(206, &[("content-range", "bytes 5-9/10")]), Answer::Resumed(known("\"a\"", 10)));
        // Servers that do not know If-Range.
        assert_eq!(
            answer(206, &[("content-range", "bytes 5-9/10"), ("etag", "\"b\"")]),
            Answer::Again(Anew::Changed)
        );
        assert_eq!(answer(206, &[("content-range", "bytes 5-10/11")]), Answer::Again(Anew::Changed));
        for bad in [
            "bytes 4-9/10",
            "bytes 6-9/10",
            "bytes 5-8/10",
            "bytes 5-4/10",
            "bytes */10",
            "x",
            "bytes 5-10/10",
        ] {
            assert_eq!(answer(206, &[("content-range", bad)]), Answer::Again(Anew::BadRange), "{bad}");
        }
        assert_eq!(answer(206, &[]), Answer::Again(Anew::BadRange));
        assert_eq!(
            answer(200, &[("etag", "\"a\""), ("content-length", "10")]),
            Answer::Whole(known("\"a\"", 10), Some(Anew::NoRanges))
        );
        assert_eq!(
            answer(200, &[("etag", "\"b\""), ("content-length", "10")]),
            Answer::Whole(known("\"b\"", 10), Some(Anew::Changed))
        );
        assert!(matches!(answer(200, &[("content-length", "11")]), Answer::Whole(_, Some(Anew::Changed))));
        assert_eq!(answer(416, &[]), Answer::Again(Anew::Changed));
    }

    #[test]
    fn answers_to_a_first_request() {
        let answer =
            |status, fields: &[(&'static str, &str)]| read(status, &headers(fields), 0, &Known::default());
        assert!(matches!(answer(200, &[]), Ok(Answer::Whole(Known { total: None, .. }, None))));
        assert!(matches!(
            answer(206, &[("content-range", "bytes 0-9/10")]),
            Err(DownloadError::BadAnswer(_))
        ));
        for status in [204, 400, 404, 416, 500] {
            assert!(
                matches!(answer(status, &[]), Err(DownloadError::Status { status: s, .. }) if s == status)
            );
        }
        assert!(matches!(answer(304, &[]), Ok(Answer::NotModified)));
    }

    #[test]
    fn weak_tags_are_not_for_ranges() {
        let v = |etag: &str| Validator { etag: Some(etag.into()), last_modified: Some("then".into()) };
        assert_eq!(v("\"x\"").if_range(), Some("\"x\""));
        assert_eq!(v("W/\"x\"").if_range(), Some("then"));
        assert_eq!(v("W/\"x\"").unless_same().unwrap().1, "W/\"x\"");
        assert_eq!(Validator::default().if_range(), None);
    }

    #[test]
    fn servers_say_when_to_come_back() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_770);
        let after = |text| retry_after(&headers(&[("retry-after", text)]), now);
        assert_eq!(after("120"), Some(Duration::from_secs(120)));
        assert_eq!(after("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::from_secs(7)));
        assert_eq!(after("Sun, 06 Nov 1994 08:49:00 GMT"), Some(Duration::ZERO));
        assert_eq!(after("soon"), None);
    }

    proptest! {
        #[test]
        fn a_part_is_taken_only_where_it_fits(
            range in "bytes [0-9]{1,3}-[0-9]{1,3}/([0-9]{1,3}|\\*)", offset in 1u64..300, total in proptest::option::of(1u64..300)
        ) {
            let known = Known { total, ..Known::default() };
            if let Answer::Resumed(now) = read(206, &headers(&[("content-range", &range)]), offset, &known).unwrap() {
                let prefix = format!("bytes {offset}-");
                prop_assert!(range.starts_with(&prefix) || range.starts_with("bytes 0"));
                prop_assert!(now.total.is_none_or(|t| t > offset || total.is_some()));
                prop_assert!(total.is_none() || now.total == total);
            }
        }

        #[test]
        fn no_field_panics(text in "\\PC{0,30}") {
            let _ = content_range(&text);
            if let Ok(value) = HeaderValue::from_str(&text) {
                let headers: HeaderMap = [(header::RETRY_AFTER, value)].into_iter().collect();
                let _ = retry_after(&headers, SystemTime::UNIX_EPOCH);
            }
        }
    }
}
