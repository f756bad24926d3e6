/// An operation on a keyring, which a policy can grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// Encrypt plaintext.
    Encrypt,
    /// Decrypt ciphertext.
    Decrypt,
    /// Re-encrypt ciphertext under the primary.
    Rewrap,
    /// Request a new key for the caller's own encryption, in plaintext and encrypted.
    DataKey,
    /// See the keyring, its versions and their roles.
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

    /// Returns whether a rule for all operations, or a policy without rules, allows it. The
    /// operation that hands out a key must be named.
    pub fn is_implied(self) -> bool {
        self != Self::DataKey
    }

    /// Returns the name in config, metrics and logs.
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
