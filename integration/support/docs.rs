//! Pages of the documentation, and their code blocks.

pub const README: &str = include_str!("../../README.md");

/// Returns a page's fenced code blocks in one language, in order.
pub fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    let fence = format!("\n```{language}\n");
    page.split(fence.as_str())
        .skip(1)
        .map(|rest| &rest[..rest.find("```\n").unwrap()])
        .collect()
}
