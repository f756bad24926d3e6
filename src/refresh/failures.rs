//! How often requests on a keyring failed.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::{model::Operation, wire::Code};

const OPERATIONS: usize = Operation::ALL.len();
const CODES: usize = Code::ALL.len();

/// Requests and items of batches that failed since the start of the process.
pub struct FailureCounts([[AtomicU64; CODES]; OPERATIONS]);

impl Default for FailureCounts {
    fn default() -> Self {
        Self([const { [const { AtomicU64::new(0) }; CODES] }; OPERATIONS])
    }
}

impl FailureCounts {
    /// Counts one failure.
    pub fn count(&self, operation: Operation, code: Code) {
        self.0[operation as usize][code as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns what has failed, and how often.
    pub fn counts(&self) -> impl Iterator<Item = (Operation, Code, u64)> {
        Operation::ALL.into_iter().flat_map(move |operation| {
            Code::ALL.iter().filter_map(move |code| {
                let count = &self.0[operation as usize][*code as usize];
                let count = count.load(Ordering::Relaxed);
                (count > 0).then_some((operation, *code, count))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_operation_and_code_has_a_count_of_its_own() {
        let counts = FailureCounts::default();
        for (index, code) in Code::ALL.iter().enumerate() {
            for operation in Operation::ALL {
                for _ in 0..=index {
                    counts.count(operation, *code);
                }
            }
        }
        let found: Vec<_> = counts.counts().collect();
        assert_eq!(found.len(), OPERATIONS * CODES);
        for (_, code, count) in found {
            let index = Code::ALL.iter().position(|found| *found == code);
            assert_eq!(Some(count as usize - 1), index, "{code:?}");
        }
        assert_eq!(FailureCounts::default().counts().count(), 0);
    }
}
