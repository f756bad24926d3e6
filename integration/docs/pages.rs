//! The documentation matches the code: commands run, configs are valid, links resolve.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use saphyr::{LoadableYamlNode, Yaml};
use sidekey::wire::Code;

use crate::support::{
    docs::{README, blocks},
    harness::binary,
};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Whether `sidekey check` accepts a config.
fn assert_valid(config: &str, of: &str) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sidekey.toml");
    fs::write(&file, config).unwrap();
    let output = Command::new(binary())
        .args(["check", "--config-only", "--config"])
        .arg(&file)
        .output()
        .unwrap();
    assert!(output.status.success(), "{of}: {output:?}\n{config}");
}

#[test]
fn documented_configs_are_valid() {
    assert_valid(
        blocks(include_str!("../../docs/config.md"), "toml")[0],
        "config.md",
    );
    for page in fs::read_dir(repository().join("docs/backends")).unwrap() {
        let page = page.unwrap().path();
        let text = fs::read_to_string(&page).unwrap();
        for block in blocks(&text, "toml") {
            // The pages omit what every config has.
            let config = format!("{block}\n[listen]\nsocket = \"sidekey.sock\"\n");
            assert_valid(&config, &page.display().to_string());
        }
    }
}

#[test]
fn the_documented_fleet_file_is_valid() {
    let file = blocks(include_str!("../../docs/operations.md"), "toml")[0];
    sidekey::config::parse_fleet(Path::new("/fleet.toml"), file).unwrap();
}

#[test]
fn the_documented_config_of_a_hub_is_valid() {
    let config = blocks(include_str!("../../docs/hub.md"), "toml")[0];
    sidekey::config::parse_hub(Path::new("/hub.toml"), config).unwrap();
}

#[test]
fn the_documented_signer_file_is_valid() {
    let page = include_str!("../../docs/rollout.md");
    let mut files = blocks(page, "toml").into_iter();
    let file = files.find(|block| block.starts_with("state_dir")).unwrap();
    sidekey::config::parse_signer(Path::new("/signer.toml"), file).unwrap();
}

#[test]
fn every_metric_is_documented() {
    let page = include_str!("../../docs/metrics.md");
    let documented: BTreeSet<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `sidekey_")?.split('`').next())
        .collect();
    let sources: String = walkdir::WalkDir::new(repository().join("src"))
        .into_iter()
        .map(Result::unwrap)
        .filter(|entry| entry.path().extension() == Some(OsStr::new("rs")))
        .map(|entry| fs::read_to_string(entry.path()).unwrap())
        .collect();
    let registered: BTreeSet<&str> = sources
        .split("\"sidekey_")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
        .filter(|name| {
            name.chars()
                .all(|char| char.is_ascii_lowercase() || char == '_')
        })
        .collect();
    assert_eq!(documented, registered);
}

/// The help of a command.
fn help(command: &[&str]) -> String {
    let output = Command::new(binary())
        .args(command)
        .arg("--help")
        .output()
        .unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The invocations of `sidekey` in a page, in its `sh` blocks and in inline code.
fn invocations(page: &str) -> Vec<String> {
    let joined: Vec<String> = blocks(page, "sh")
        .iter()
        .map(|block| block.replace("\\\n", " "))
        .collect();
    let commands = joined
        .iter()
        .flat_map(|block| block.lines())
        .flat_map(|line| line.split(['|', ';', '&', '(']));
    let outside_blocks: String = page.split("```").step_by(2).collect();
    let inline = outside_blocks.split('`').skip(1).step_by(2);
    commands
        .chain(inline)
        .map(|command| command.trim().replace('\n', " "))
        .filter(|command| command.starts_with("sidekey "))
        .collect()
}

#[test]
fn documented_commands_and_options_exist() {
    let mut helps = BTreeMap::new();
    let mut seen = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for invocation in invocations(&text) {
            let words: Vec<&str> = invocation
                .split_whitespace()
                .skip(1)
                .take_while(|word| *word != "--" && !word.starts_with('#'))
                .collect();
            let depth = if ["keyring", "audit", "rollout", "fleet"].contains(&words[0]) {
                2
            } else {
                1
            };
            // `sidekey keyring …` means all of them, `a\|b` means two.
            let Some(last) = words.get(depth - 1).filter(|word| word.is_ascii()) else {
                continue;
            };
            for name in last.split("\\|") {
                let command = [&words[..depth - 1], &[name]].concat();
                let help = helps
                    .entry(command.join(" "))
                    .or_insert_with(|| help(&command));
                for option in words
                    .iter()
                    .map(|word| word.trim_start_matches('['))
                    .filter(|word| word.starts_with("--"))
                    .map(|word| word.split(['=', ']']).next().unwrap())
                {
                    let is_listed = help
                        .split(|char: char| !(char.is_ascii_alphanumeric() || char == '-'))
                        .any(|word| word == option);
                    assert!(is_listed, "{}: {invocation}: no {option}", page.display());
                }
                seen += 1;
            }
        }
    }
    assert!(seen > 50, "only {seen} commands were found");
}

/// The children of a mapping or sequence under a name.
fn items<'a>(node: &'a Yaml<'_>, name: &str) -> &'a [Yaml<'a>] {
    node[name].as_sequence().unwrap()
}

fn names(list: &[Yaml<'_>]) -> BTreeSet<String> {
    list.iter()
        .map(|item| item["name"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn the_readme_pod_and_its_config_are_valid() {
    let [text] = blocks(README, "yaml")[..] else {
        panic!("one YAML block")
    };
    let documents = Yaml::load_from_str(text).unwrap();
    let of_kind = |kind: &str| {
        documents
            .iter()
            .find(|document| document["kind"].as_str() == Some(kind))
            .unwrap()
    };
    let config = of_kind("ConfigMap")["data"]["sidekey.toml"]
        .as_str()
        .unwrap();
    assert_valid(config, "README.md");

    let spec = &of_kind("Pod")["spec"];
    let [sidecar] = items(spec, "initContainers") else {
        panic!("one init container")
    };
    assert_eq!(sidecar["restartPolicy"].as_str(), Some("Always"));
    let [application] = items(spec, "containers") else {
        panic!("one container")
    };
    let volumes = names(items(spec, "volumes"));
    assert_eq!(names(items(sidecar, "volumeMounts")), volumes);
    assert!(names(items(application, "volumeMounts")).is_subset(&volumes));
    // The config's socket, user and group are the pod's.
    let config: toml::Table = config.parse().unwrap();
    let socket = config["listen"]["socket"].as_str().unwrap();
    assert_eq!(items(application, "env")[0]["value"].as_str(), Some(socket));
    assert_eq!(
        config["listen"]["group"].as_integer(),
        spec["securityContext"]["fsGroup"].as_integer()
    );
    assert_eq!(
        config["policy"][0]["uids"][0].as_integer(),
        application["securityContext"]["runAsUser"].as_integer()
    );
}

/// Every page: those at the root, those of the book, and that of the chart.
fn pages() -> Vec<PathBuf> {
    let markdown = |folder: &str| {
        fs::read_dir(repository().join(folder))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension() == Some(OsStr::new("md")))
    };
    ["", "docs", "docs/backends", "docs/runbooks", "helm/sidekey"]
        .into_iter()
        .flat_map(markdown)
        .collect()
}

/// A page without its code, which contains no links.
fn prose(page: &str) -> String {
    let outside_blocks = page.split("```").step_by(2);
    outside_blocks
        .flat_map(|text| text.split('`').step_by(2))
        .collect()
}

/// The targets of a page's links within the repository.
fn links(page: &str) -> Vec<String> {
    let prose = prose(page);
    let targets = prose
        .split("](")
        .skip(1)
        .map(|rest| rest.split(')').next().unwrap());
    targets
        .filter(|target| !target.starts_with("https://"))
        .map(str::to_owned)
        .collect()
}

/// The anchors of a page's headings, as GitHub and mdBook make them.
fn anchors(page: &str) -> Vec<String> {
    let mut in_block = false;
    let headings = page.lines().filter(|line| {
        in_block ^= line.starts_with("```");
        !in_block && line.starts_with('#')
    });
    let anchor = |heading: &str| {
        heading
            .trim_start_matches('#')
            .trim()
            .to_lowercase()
            .replace(' ', "-")
            .chars()
            .filter(|char| char.is_alphanumeric() || "-_".contains(*char))
            .collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn internal_links_resolve() {
    let book = repository().join("docs");
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for link in links(&text) {
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = if file.is_empty() {
                page.clone()
            } else {
                let target = page.parent().unwrap().join(file);
                fs::canonicalize(&target)
                    .unwrap_or_else(|error| panic!("{}: {link}: {error}", page.display()))
            };
            // The book contains only its own directory.
            assert!(
                !page.starts_with(&book) || target.starts_with(&book),
                "{}: {link} leaves the book",
                page.display()
            );
            assert!(
                anchor.is_empty()
                    || anchors(&fs::read_to_string(&target).unwrap()).contains(&anchor.to_owned()),
                "{}: {link}: no such heading",
                page.display()
            );
        }
    }
}

#[test]
fn the_book_lists_every_page() {
    let book = repository().join("docs");
    let summary = fs::read_to_string(book.join("SUMMARY.md")).unwrap();
    let listed: BTreeSet<PathBuf> = links(&summary).iter().map(|link| book.join(link)).collect();
    let pages: BTreeSet<PathBuf> = pages()
        .into_iter()
        .filter(|page| page.starts_with(&book) && !page.ends_with("SUMMARY.md"))
        .collect();
    assert_eq!(listed, pages);
}

#[test]
fn paths_in_the_pages_exist() {
    let roots = [".ci/", "benches/", "docs/", "helm/", "integration/", "src/"];
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        let outside_blocks: String = text.split("```").step_by(2).collect();
        for path in outside_blocks.split('`').skip(1).step_by(2) {
            let is_source = path.contains('/') && path.ends_with(".rs");
            let is_rooted = roots.iter().any(|root| path.starts_with(root));
            // NAME is a placeholder.
            if (!is_source && !is_rooted) || path.contains(' ') || path.contains("NAME") {
                continue;
            }
            let exists = |folder: &str| repository().join(folder).join(path).exists();
            assert!(exists("") || exists("src"), "{}: {path}", page.display());
        }
    }
}

#[test]
fn the_architecture_lists_every_module() {
    let page = include_str!("../../ARCHITECTURE.md");
    let table: String = page
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(" |").next())
        .collect();
    let modules = include_str!("../../src/lib.rs")
        .lines()
        .filter_map(|line| line.strip_suffix(';')?.split("mod ").nth(1));
    for module in modules {
        assert!(table.contains(&format!("`{module}`")), "{module}");
    }
}

#[test]
fn quoted_problems_have_their_titles() {
    let mut seen = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for quote in text.split("{\"code\": \"").skip(1) {
            let Some((code, rest)) = quote.split_once("\", \"title\": \"") else {
                continue;
            };
            let title = rest.split('"').next().unwrap();
            let known = Code::ALL.iter().find(|known| known.as_str() == code);
            let expected = known.map(|known| known.title());
            assert_eq!(Some(title), expected, "{}: {code}", page.display());
            seen += 1;
        }
    }
    assert!(seen > 0);
}
