//! The product decides as the model does.

use std::collections::{BTreeSet, HashMap};

use super::{
    super::*,
    Content, Contents, Key,
    searches::{Shown, forgeries, lagging},
};
use crate::keyring;

/// Turns contents of the model into documents.
struct Forge {
    id: KeyringId,
    now: Timestamp,
    documents: HashMap<usize, Arc<Document>>,
}

impl Forge {
    fn new() -> Self {
        Self {
            id: KeyringId([7; 16]),
            now: Timestamp::from_second(1_700_000_000).expect("in range"),
            documents: HashMap::new(),
        }
    }

    fn dek(key: Key) -> Dek {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&key.to_be_bytes());
        Dek::from_slice(&bytes).expect("32 bytes")
    }

    fn stranger() -> SigningKey {
        Dek::from_slice(&[0xff; 32])
            .expect("32 bytes")
            .succession_key()
    }

    /// The document of an honest content.
    fn honest(&mut self, contents: &Contents, number: usize) -> Arc<Document> {
        if let Some(document) = self.documents.get(&number) {
            return Arc::clone(document);
        }
        let content = contents.at(number);
        let document = self
            .document(contents, content, &content.words())
            .expect("an honest manifest is consistent");
        let document = Arc::new(document);
        self.documents.insert(number, Arc::clone(&document));
        document
    }

    /// The document of a content for which `words` are given, or why no reader can parse it.
    fn document(
        &mut self,
        contents: &Contents,
        content: &Content,
        words: &BTreeSet<Key>,
    ) -> Result<Document, ManifestError> {
        let name = "demo".parse().expect("name");
        let mut manifest = Manifest::empty(name, self.id, Policy::default(), self.now);
        manifest.generation = content.generation;
        for (generation, ancestor) in &content.lineage {
            let digest = self.honest(contents, *ancestor).digest();
            manifest.lineage.push(Ancestor {
                generation: *generation,
                sha256: Base64(digest.to_vec()),
            });
        }
        manifest.activations = content
            .activations
            .iter()
            .map(|version| Activation {
                version: *version,
                wave: WaveSelector::Every,
                at: self.now,
                generation: None,
            })
            .collect();
        let keys = content.keys();
        let mut signing = BTreeMap::new();
        for (number, version) in (1..).zip(&content.versions) {
            manifest.versions.push(self.version(number, version));
            let signs = match (version.state, &version.testament) {
                (super::State::Destroyed, Some(testament)) => keys.starts_with(&testament.keys),
                _ => words.contains(&version.key),
            };
            let key = if signs {
                Self::dek(version.key).succession_key()
            } else {
                Self::stranger()
            };
            signing.insert(number, key);
        }
        let document = authenticate(manifest, &signing, None).expect("a key for each version");
        Document::parse(document.bytes().clone())
    }

    fn version(&self, number: u32, version: &super::Version) -> keyring::Version {
        let dek = Self::dek(version.key);
        let is_destroyed = version.state == super::State::Destroyed;
        let wrap = Wrap {
            kek: format!("local:/{}", version.kek).parse().expect("uri"),
            ciphertext: Base64(vec![0]),
            wrapped_at: self.now,
        };
        let testament = version.testament.as_ref().map(|testament| Testament {
            generation: testament.generation,
            newest: u32::try_from(testament.keys.len()).expect("small"),
            heirs: testament.heirs.clone(),
            signature: Base64(Vec::new()),
        });
        keyring::Version {
            version: number,
            state: match version.state {
                super::State::Enabled => keyring::State::Enabled,
                super::State::Disabled => keyring::State::Disabled,
                super::State::Destroyed => keyring::State::Destroyed,
            },
            compromised: version.compromised,
            created_at: self.now,
            state_changed_at: self.now,
            wraps: if is_destroyed { Vec::new() } else { vec![wrap] },
            check: Base64(dek.check_value(&self.id, number).to_vec()),
            key: Base64(dek.succession_key().public_key().to_vec()),
            testament,
            kept: Kept::default(),
        }
    }

    fn accepts(&mut self, contents: &Contents, shown: &Shown) -> bool {
        let base = self.honest(contents, shown.base);
        let candidate = self.document(contents, &shown.candidate, &shown.words);
        candidate.is_ok_and(|candidate| verdict(&base, &candidate).is_ok())
    }
}

/// Compares about `count` of what was searched, evenly spread.
fn compare(contents: &Contents, shown: &[Shown], count: usize) {
    let mut forge = Forge::new();
    for shown in shown.iter().step_by((shown.len() / count).max(1)) {
        let model = contents.accepts(shown.base, &shown.candidate, &shown.words, &[]);
        assert_eq!(
            forge.accepts(contents, shown),
            model,
            "base {:?}\ncandidate {:?}\nwords {:?}",
            contents.at(shown.base),
            shown.candidate,
            shown.words
        );
    }
}

#[test]
fn the_product_follows_honest_histories_as_the_model_does() {
    let mut contents = Contents::default();
    let shown = lagging(&mut contents, 5, 3);
    compare(&contents, &shown, 300);
}

#[test]
fn the_product_judges_forgeries_as_the_model_does() {
    let mut contents = Contents::default();
    let mut shown = forgeries(&mut contents, 4, 3, 2);
    compare(&contents, &shown, 300);
    // With every word, only descent and testaments are left to judge, and many are accepted.
    for shown in &mut shown {
        shown.words = shown.candidate.words();
    }
    compare(&contents, &shown, 300);
    let accepted = shown
        .iter()
        .filter(|shown| contents.accepts(shown.base, &shown.candidate, &shown.words, &[]))
        .count();
    assert!(
        (100..shown.len()).contains(&accepted),
        "{accepted} accepted"
    );
}
