//! Filters as docker's command line has them: `key=value` texts. Values of one key are alternatives, keys are conditions.

use std::collections::BTreeMap;

/// What is wanted, by key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filters(BTreeMap<String, Vec<String>>);

/// Says that a text is no filter here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no filter here: KEY=VALUE is, with a KEY of {known}")]
pub struct InvalidFilter {
    text: String,
    known: String,
}

impl Filters {
    /// Parses texts whose keys must be among `known`.
    ///
    /// # Errors
    /// Returns [`InvalidFilter`] for the first text that is none.
    pub fn parse<'a>(
        texts: impl IntoIterator<Item = &'a str>,
        known: &[&str],
    ) -> Result<Self, InvalidFilter> {
        let mut filters = Self::default();
        for text in texts {
            match text.split_once('=').filter(|(key, _)| known.contains(key)) {
                Some((key, value)) => filters
                    .0
                    .entry(key.to_owned())
                    .or_default()
                    .push(value.to_owned()),
                None => {
                    return Err(InvalidFilter {
                        text: text.to_owned(),
                        known: known.join(", "),
                    });
                }
            }
        }
        Ok(filters)
    }

    /// Returns the values of a key.
    pub fn values(&self, key: &str) -> &[String] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    /// Tells whether one of a key's values fits, or there is none.
    pub fn allows(&self, key: &str, fits: impl FnMut(&str) -> bool) -> bool {
        let values = self.values(key);
        values.is_empty() || values.iter().map(String::as_str).any(fits)
    }

    /// Tells whether every label that is asked for is there: `NAME`, or `NAME=VALUE`. Other than with other keys, all must be.
    pub fn allows_labels(&self, key: &str, labels: &BTreeMap<String, String>) -> bool {
        self.values(key).iter().all(|wanted| has_label(wanted, labels))
    }

    /// Tells whether one of the labels of a key is there.
    pub fn has_any_label(&self, key: &str, labels: &BTreeMap<String, String>) -> bool {
        self.values(key).iter().any(|wanted| has_label(wanted, labels))
    }
}

fn has_label(wanted: &str, labels: &BTreeMap<String, String>) -> bool {
    match wanted.split_once('=') {
        Some((name, value)) => labels.get(name).is_some_and(|has| has == value),
        None => labels.contains_key(wanted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_alternatives_keys_and_labels_are_conditions() {
        let filters = Filters::parse(
            ["name=a", "name=b", "label=x", "label=y=1=2"],
            &["name", "label", "status"],
        )
        .unwrap();
        assert!(filters.allows("name", |name| name == "b"));
        assert!(!filters.allows("name", |name| name == "c"));
        assert!(filters.allows("status", |_| false), "nothing was asked for");
        let labels = |texts: &[(&str, &str)]| {
            texts
                .iter()
                .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
                .collect()
        };
        assert!(filters.allows_labels("label", &labels(&[("x", ""), ("y", "1=2")])));
        assert!(!filters.allows_labels("label", &labels(&[("x", "")])));
        assert!(!filters.allows_labels("label", &labels(&[("x", ""), ("y", "1")])));
    }

    #[test]
    fn what_is_no_filter_is_refused_with_what_would_be() {
        for text in ["name", "", "=x", "colour=red"] {
            let refused = Filters::parse([text], &["name", "label"]).unwrap_err();
            assert!(refused.to_string().contains("name, label"), "{refused}");
        }
    }
}
