//! The operations on a keyring that a policy can grant.

/// What a caller may be allowed to do with a keyring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// Plaintext to ciphertext.
    Encrypt,
    /// Ciphertext to plaintext.
    Decrypt,
    /// Ciphertext to ciphertext under the primary.
    Rewrap,
    /// A fresh key for the caller's own encryption, plain and encrypted.
    DataKey,
    /// Seeing that the keyring is there, its versions and roles.
    Inspect,
}

impl Operation {
    /// Every operation.
    pub const ALL: [Self; 5] = [
        Self::Encrypt,
        Self::Decrypt,
        Self::Rewrap,
        Self::DataKey,
        Self::Inspect,
    ];

    /// Whether a rule for all operations, or no rule at all, allows it. One that hands out a key has to be named.
    pub fn is_implied(self) -> bool {
        self != Self::DataKey
    }

    /// Its name in config, metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Encrypt => "encrypt",
            Self::Decrypt => "decrypt",
            Self::Rewrap => "rewrap",
            Self::DataKey => "data-key",
            Self::Inspect => "inspect",
        }
    }
}
