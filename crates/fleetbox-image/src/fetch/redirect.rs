//! Where a redirect leads, and whether to follow it. Pure.

use hyper::Uri;

use super::DownloadError;

/// More than any site needs, and what curl and browsers accept is not much more.
const MOST: usize = 10;

/// The addresses that a request has been through.
#[derive(Debug)]
pub(super) struct Trail(Vec<Uri>);

impl Trail {
    pub(super) fn new(first: Uri) -> Self {
        Self(vec![first])
    }

    /// The next address, by the last one's Location field.
    pub(super) fn follow(&mut self, from: &Uri, location: &str) -> Result<Uri, DownloadError> {
        let bad = || DownloadError::BadRedirect(location.chars().take(200).collect());
        let next = resolve(from, location).ok_or_else(bad)?;
        if from.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
            return Err(DownloadError::Downgrade(next.to_string()));
        }
        if self.0.contains(&next) {
            return Err(DownloadError::RedirectLoop(next.to_string()));
        }
        if self.0.len() > MOST {
            return Err(DownloadError::TooManyRedirects { limit: MOST, last: next.to_string() });
        }
        self.0.push(next.clone());
        Ok(next)
    }
}

/// A reference resolved against the address it was found at (RFC 3986 §5.2).
fn resolve(base: &Uri, reference: &str) -> Option<Uri> {
    let reference = reference.trim();
    let reference = reference.split_once('#').map_or(reference, |(r, _)| r);
    let (scheme, authority) = (base.scheme_str()?, base.authority()?.as_str());
    let (path, query) = match reference.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (reference, None),
    };
    let target = if let Some((other, rest)) = path.split_once("://").filter(|(s, _)| is_scheme(s)) {
        format!("{}://{rest}", other.to_ascii_lowercase())
    } else if let Some(rest) = path.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if path
        .split('/')
        .next()
        .is_some_and(|first| first.split_once(':').is_some_and(|(s, _)| is_scheme(s)))
    {
        // `mailto:x`
        return None;
    } else if path.is_empty() {
        format!("{scheme}://{authority}{}", base.path())
    } else if path.starts_with('/') {
        format!("{scheme}://{authority}{}", without_dots(path))
    } else {
        let folder = base.path().rfind('/').map_or("/", |at| &base.path()[..=at]);
        format!("{scheme}://{authority}{}", without_dots(&format!("{folder}{path}")))
    };
    let target: Uri = query.map_or(target.clone(), |q| format!("{target}?{q}")).parse().ok()?;
    let ok = matches!(target.scheme_str(), Some("http" | "https"))
        && target.host().is_some_and(|h| !h.is_empty())
        // A password would be shown, and belongs to nobody here.
        && !target.authority()?.as_str().contains('@');
    ok.then_some(target)
}

fn is_scheme(s: &str) -> bool {
    s.starts_with(|c: char| c.is_ascii_alphabetic())
        && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
}

/// RFC 3986 §5.2.4.
fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    kept.pop();
                }
                if last {
                    kept.push("");
                }
            }
            other => kept.push(other),
        }
    }
    format!("/{}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn uri(s: &str) -> Uri {
        s.parse().unwrap()
    }

    #[test]
    fn references_are_resolved() {
        let base = uri("https://a.test:8443/b/c/d?q");
        for (reference, target) in [
            ("https://other.test/x", "https://other.test/x"),
            ("HTTPS://other.test/x", "https://other.test/x"),
            ("//other.test/x?y", "https://other.test/x?y"),
            ("/x", "https://a.test:8443/x"),
            ("x", "https://a.test:8443/b/c/x"),
            ("x/y?z=1#f", "https://a.test:8443/b/c/x/y?z=1"),
            ("./x", "https://a.test:8443/b/c/x"),
            ("../x", "https://a.test:8443/b/x"),
            ("../../../../x", "https://a.test:8443/x"),
            ("..", "https://a.test:8443/b/"),
            (".", "https://a.test:8443/b/c/"),
            ("?r", "https://a.test:8443/b/c/d?r"),
            (" /x ", "https://a.test:8443/x"),
            ("x?to=http://y.test/", "https://a.test:8443/b/c/x?to=http://y.test/"),
        ] {
            assert_eq!(
                resolve(&base, reference).map(|u| u.to_string()).as_deref(),
                Some(target),
                "{reference}"
            );
        }
        for bad in
            ["ftp://x/y", "file:///etc/passwd", "mailto:x", "https://", "https://u:p@x/", "http:x", "/a b"]
        {
            assert_eq!(resolve(&base, bad), None, "{bad}");
        }
    }

    #[test]
    fn loops_downgrades_and_long_ways_end() {
        let mut trail = Trail::new(uri("https://a.test/1"));
        let two = trail.follow(&uri("https://a.test/1"), "/2").unwrap();
        assert!(
            matches!(trail.follow(&two, "/1"), Err(DownloadError::RedirectLoop(u)) if u == "https://a.test/1")
        );
        assert!(matches!(trail.follow(&two, "/2"), Err(DownloadError::RedirectLoop(_))));
        assert!(matches!(trail.follow(&two, "http://a.test/3"), Err(DownloadError::Downgrade(_))));
        assert!(matches!(
            trail.follow(&two, "ftp://a.test/3"),
            Err(DownloadError::BadRedirect(_) | DownloadError::Downgrade(_))
        ));
        let (mut trail, mut at) = (Trail::new(uri("http://a.test/0")), uri("http://a.test/0"));
        let mut followed = 0;
        let end = loop {
            match trail.follow(&at, &format!("/{}", followed + 1)) {
                Ok(next) => (at, followed) = (next, followed + 1),
                Err(e) => break e,
            }
        };
        assert_eq!(followed, MOST);
        assert!(matches!(end, DownloadError::TooManyRedirects { limit: MOST, .. }));
    }

    proptest! {
        #[test]
        fn no_location_panics_or_leaves_http(location in "\\PC{0,40}") {
            if let Some(target) = resolve(&uri("http://a.test/b/c"), &location) {
                prop_assert!(matches!(target.scheme_str(), Some("http" | "https")));
                prop_assert!(!target.path().split('/').any(|s| s == "..") || location.contains("://") || location.starts_with("//"));
            }
        }
    }
}
