//! The commands' exact output: integration/commands/*.md.

#[test]
fn commands_print_what_the_pages_say() {
    let cases = trycmd::TestCases::new();
    cases.register_bin("sh", std::path::Path::new("/bin/sh"));
    cases.case("integration/commands/*.md");
}
