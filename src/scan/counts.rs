//! The number of ciphertexts by keyring, version and form.

use std::{
    collections::BTreeMap,
    ops::{Add, AddAssign},
};

use super::{Finding, Form};

/// The number of ciphertexts of one keyring and version.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// In the text form.
    pub text: u64,
    /// In the text form, in UTF-16.
    pub utf16: u64,
    /// As raw bytes.
    pub binary: u64,
    /// In hexadecimal digits.
    pub hex: u64,
    /// In base64.
    pub base64: u64,
    /// How many of them are streams.
    pub streams: u64,
    /// How many of them are shorter than any ciphertext.
    pub cut_off: u64,
}

impl Counts {
    /// Returns the number in all forms.
    pub fn total(&self) -> u64 {
        self.text + self.utf16 + self.binary + self.hex + self.base64
    }
}

impl From<Finding> for Counts {
    fn from(finding: Finding) -> Self {
        let mut counts = Self {
            streams: u64::from(finding.header.is_stream),
            cut_off: u64::from(finding.is_cut_off),
            ..Self::default()
        };
        match finding.form {
            Form::Text => counts.text = 1,
            Form::Utf16 => counts.utf16 = 1,
            Form::Binary => counts.binary = 1,
            Form::Hex => counts.hex = 1,
            Form::Base64 => counts.base64 = 1,
        }
        counts
    }
}

impl Add for Counts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            text: self.text + other.text,
            utf16: self.utf16 + other.utf16,
            binary: self.binary + other.binary,
            hex: self.hex + other.hex,
            base64: self.base64 + other.base64,
            streams: self.streams + other.streams,
            cut_off: self.cut_off + other.cut_off,
        }
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

/// Counts by keyring tag and version.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct CountsByKey(pub BTreeMap<([u8; 4], u32), Counts>);

impl CountsByKey {
    pub(super) fn count(&mut self, finding: Finding) {
        *self
            .0
            .entry((finding.header.tag, finding.header.version))
            .or_default() += finding.into();
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (key, counts) in &other.0 {
            *self.0.entry(*key).or_default() += *counts;
        }
    }
}
