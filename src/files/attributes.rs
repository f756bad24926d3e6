//! The group, mode and owner of files that are written for another user.

use std::{
    fs::{File, Metadata, Permissions},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt, fchown},
};

/// The permission bits proper.
const PERMISSIONS: u32 = 0o777;
/// Set-user-ID and set-group-ID, which chown(2) clears.
const RUN_AS: u32 = 0o6000;

/// What [`give`] sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attribute {
    /// The group. A process can give its files to the groups that it is a member of.
    Group,
    /// Extended attributes, access lists among them.
    Extended,
    /// The permission bits.
    Mode,
    /// The owner, which requires root or CAP_CHOWN.
    Owner,
}

/// Who may do what with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Access {
    pub(super) group: u32,
    pub(super) mode: u32,
    pub(super) owner: u32,
}

impl Access {
    pub(super) fn of(file: &Metadata) -> Self {
        Self {
            group: file.gid(),
            mode: file.mode() & 0o7777,
            owner: file.uid(),
        }
    }
}

/// One change of a file's attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Group(u32),
    Extended,
    Mode(u32),
    Owner(u32),
}

impl Step {
    fn attribute(self) -> Attribute {
        match self {
            Self::Group(_) => Attribute::Group,
            Self::Extended => Attribute::Extended,
            Self::Mode(_) => Attribute::Mode,
            Self::Owner(_) => Attribute::Owner,
        }
    }

    /// Makes the change; extended attributes are the caller's.
    pub(super) fn apply(self, file: &File) -> io::Result<()> {
        match self {
            Self::Group(group) => fchown(file, None, Some(group)),
            Self::Extended => Ok(()),
            Self::Mode(mode) => file.set_permissions(Permissions::from_mode(mode)),
            Self::Owner(owner) => fchown(file, Some(owner), None),
        }
    }
}

/// Returns the changes from `present` to `wanted`, in the order in which no step opens the file to
/// someone who may use it neither before nor after all of them:
///
/// - The group comes before the mode, whose bits are meant for it.
/// - An access list comes before the mode as well: until it is set, the bits of its mask would be
///   those of the group.
/// - The owner comes last, because a process without CAP_FOWNER can change neither mode nor access
///   list of what it doesn't own.
/// - The set-ID bits follow even the owner: until then, the file would run as the former one.
pub(super) fn steps(present: Access, wanted: Access, is_extended: bool) -> Vec<Step> {
    let (is_regrouped, is_given) = (present.group != wanted.group, present.owner != wanted.owner);
    let mut steps = Vec::new();
    let mut mode = present.mode;
    if is_regrouped || is_given {
        let common = mode & wanted.mode & PERMISSIONS;
        if mode & PERMISSIONS != common {
            mode = common;
            steps.push(Step::Mode(mode));
        }
    }
    if is_regrouped {
        mode &= !RUN_AS;
        steps.push(Step::Group(wanted.group));
    }
    if is_extended {
        steps.push(Step::Extended);
    }
    let before = if is_given {
        wanted.mode & !RUN_AS
    } else {
        wanted.mode
    };
    // An access list changes the mode, too.
    if mode != before || is_extended {
        mode = before;
        steps.push(Step::Mode(mode));
    }
    if is_given {
        steps.push(Step::Owner(wanted.owner));
    }
    if mode != wanted.mode {
        steps.push(Step::Mode(wanted.mode));
    }
    steps
}

/// Sets the group, mode and owner of a file or folder; `None` leaves one unchanged. At no time may
/// someone use it who may use it neither before nor after.
///
/// # Errors
/// What can't be set, and the system's error.
pub fn give(
    file: &File,
    group: Option<u32>,
    mode: u32,
    owner: Option<u32>,
) -> Result<(), (Attribute, io::Error)> {
    let present = file.metadata().map_err(|error| (Attribute::Mode, error))?;
    let present = Access::of(&present);
    let wanted = Access {
        group: group.unwrap_or(present.group),
        mode,
        owner: owner.unwrap_or(present.owner),
    };
    for step in steps(present, wanted, false) {
        step.apply(file)
            .map_err(|error| (step.attribute(), error))?;
    }
    Ok(())
}

/// Gives a file the group, mode and owner of another one, and what `extend` copies: the extended
/// attributes.
///
/// # Errors
/// What can't be set, and the error of the system or of `extend`.
pub fn give_like(
    file: &File,
    like: &Metadata,
    extend: impl Fn() -> io::Result<()>,
) -> Result<(), (Attribute, io::Error)> {
    let present = file.metadata().map_err(|error| (Attribute::Mode, error))?;
    for step in steps(Access::of(&present), Access::of(like), true) {
        let applied = match step {
            Step::Extended => extend(),
            step => step.apply(file),
        };
        applied.map_err(|error| (step.attribute(), error))?;
    }
    Ok(())
}

/// Runs `test` as root with no capability but CAP_CHOWN, which permits neither to change the mode
/// of another user's file nor to read it. Does nothing without that capability.
#[cfg(test)]
pub(crate) fn with_only_cap_chown(test: fn()) {
    use rustix::{
        process::geteuid,
        thread::{CapabilitySet, capabilities, set_capabilities},
    };

    let keep = CapabilitySet::CHOWN;
    let restricted = move || {
        let mut sets = capabilities(None).expect("capabilities");
        if !geteuid().is_root() || !sets.effective.contains(keep) {
            return;
        }
        (sets.effective, sets.permitted, sets.inheritable) = (keep, keep, CapabilitySet::empty());
        set_capabilities(None, sets).expect("fewer capabilities");
        test();
    };
    // Capabilities belong to a thread.
    std::thread::spawn(restricted).join().expect("passed");
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: u32 = 1;
    const THEIRS: u32 = 2;

    impl Access {
        /// Whether a user who is not the owner, in `groups`, has any right that `bit` stands for.
        fn admits(self, groups: &[u32], bit: u32) -> bool {
            let is_member = groups.contains(&self.group);
            self.mode & (if is_member { bit << 3 } else { bit }) != 0
        }

        fn after(mut self, step: Step) -> Self {
            match step {
                Step::Mode(mode) => self.mode = mode,
                Step::Extended => {}
                Step::Group(group) => {
                    self.group = group;
                    self.mode &= !RUN_AS;
                }
                Step::Owner(owner) => {
                    self.owner = owner;
                    self.mode &= !RUN_AS;
                }
            }
            self
        }
    }

    /// Every pair of modes of one kind of right, with other groups and owners.
    fn changes() -> impl Iterator<Item = (Access, Access)> {
        let accesses = |owner, group| {
            (0..8_u32).map(move |bits| Access {
                group,
                // The right to read, for the owner, the group and others.
                mode: (bits & 4) << 6 | (bits & 2) << 4 | (bits & 1) << 2,
                owner,
            })
        };
        [OURS, THEIRS]
            .into_iter()
            .flat_map(move |owner| [OURS, THEIRS].map(move |group| (owner, group)))
            .flat_map(move |(owner, group)| {
                accesses(OURS, OURS)
                    .flat_map(move |from| accesses(owner, group).map(move |to| (from, to)))
            })
    }

    #[test]
    fn no_step_lets_anyone_read_who_may_not_before_or_after() {
        for (present, wanted) in changes() {
            let mut now = present;
            for step in steps(present, wanted, false) {
                now = now.after(step);
                for groups in [&[][..], &[OURS], &[THEIRS], &[OURS, THEIRS]] {
                    let (before, during, after) = (
                        present.admits(groups, 4),
                        now.admits(groups, 4),
                        wanted.admits(groups, 4),
                    );
                    assert!(
                        !during || before || after,
                        "{present:?} to {wanted:?}, {step:?}: {groups:?}"
                    );
                }
            }
            assert_eq!(now, wanted, "{present:?}");
        }
    }

    #[test]
    fn a_file_of_another_owner_is_shared_by_its_group_list_and_mode_before_it_is_given() {
        let new = Access {
            group: OURS,
            mode: 0o600,
            owner: OURS,
        };
        let old = Access {
            group: THEIRS,
            mode: 0o640,
            owner: THEIRS,
        };
        assert_eq!(
            steps(new, old, true),
            [
                Step::Group(THEIRS),
                Step::Extended,
                Step::Mode(0o640),
                Step::Owner(THEIRS),
            ]
        );
        assert_eq!(steps(old, old, false), []);
    }

    #[test]
    fn a_program_gets_its_set_id_bits_from_its_owner() {
        let new = Access {
            group: OURS,
            mode: 0o600,
            owner: OURS,
        };
        let program = Access {
            mode: 0o4755,
            owner: THEIRS,
            ..new
        };
        let (mut now, mut ran_as) = (new, Vec::new());
        for step in steps(new, program, false) {
            now = now.after(step);
            if now.mode & RUN_AS != 0 {
                ran_as.push(now.owner);
            }
        }
        assert_eq!((now, ran_as), (program, vec![THEIRS]));
    }
}
