//! Comma-separated values (RFC 4180).

use std::borrow::Cow;

/// Formats rows; the first is the heading. Lines end with CR LF.
pub(super) fn csv(rows: &[Vec<String>]) -> String {
    let mut text = String::new();
    for row in rows {
        let fields: Vec<Cow<'_, str>> = row.iter().map(|field| quoted(field)).collect();
        text.push_str(&fields.join(","));
        text.push_str("\r\n");
    }
    text
}

fn quoted(field: &str) -> Cow<'_, str> {
    if field.contains([',', '"', '\r', '\n']) {
        format!("\"{}\"", field.replace('"', "\"\"")).into()
    } else {
        field.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separators_in_fields_are_quoted() {
        let rows = [
            vec!["name".into(), "why".into()],
            vec![String::new(), "a, b".into()],
            vec!["say \"no\"".into(), "two\r\nlines".into()],
        ];
        assert_eq!(
            csv(&rows),
            "name,why\r\n,\"a, b\"\r\n\"say \"\"no\"\"\",\"two\r\nlines\"\r\n"
        );
    }
}
