//! What another config changes in a running sidecar, and what waits for a restart.
//!
//! Every struct here that has a part that changes at run time is taken apart without `..`: a new
//! setting doesn't compile until it is decided which it is.

use super::{
    Audit, Keyring, Limits, Listen, Log, Ops, Refresh, Runtime, Secrets, Settings, Timeouts,
};

/// What a sidecar that runs with one config makes of another one.
#[derive(Debug)]
pub struct Changes {
    /// The settings to run with: those of the new config that can change at run time, and the rest
    /// of the old one.
    pub settings: Settings,
    /// The keys that differ but need a restart, such as `listen.socket`, in the order of the
    /// documentation. A table stands for all of its keys.
    pub needs_restart: Vec<String>,
}

/// Compares the settings that a sidecar runs with to those of another config.
pub fn changes(running: &Settings, wanted: Settings) -> Changes {
    let mut names = Names::default();
    let Settings {
        wave,
        listen,
        ops,
        limits,
        timeouts,
        log,
        refresh,
        runtime,
        audit,
        hub,
        backends,
        keyrings,
        secrets,
        renders,
        policy,
    } = wanted;
    names.add("wave", wave != running.wave);
    names.add_listen(&running.listen, &listen);
    names.add_ops(&running.ops, &ops);
    names.add_limits(&running.limits, &limits);
    names.add_timeouts(&running.timeouts, &timeouts);
    let log = names.merge_log(&running.log, log);
    let audit = names.merge_audit(running.audit.as_ref(), audit);
    names.add("hub", hub != running.hub);
    names.add_refresh(&running.refresh, &refresh);
    names.add_runtime(&running.runtime, &runtime);
    let has_other_backends = names.add_backends(&running.backends, &backends);
    let keyrings = names.merge_keyrings(&running.keyrings, keyrings);
    // A secret may be meant for the backend that it would be read from after a restart.
    let (secrets, renders) = if has_other_backends {
        names.add("secret", secrets != running.secrets);
        names.add("render", renders != running.renders);
        (running.secrets.clone(), running.renders.clone())
    } else {
        (names.merge_secrets(&running.secrets, secrets), renders)
    };
    Changes {
        settings: Settings {
            log,
            audit,
            keyrings,
            secrets,
            renders,
            policy,
            ..running.clone()
        },
        needs_restart: names.0,
    }
}

/// The keys that need a restart.
#[derive(Default)]
struct Names(Vec<String>);

/// Compares every field of two structs, each under the name of its key.
macro_rules! add_fields {
    (
        $names:ident, $type:ident { $($field:ident: $key:literal,)* }, $running:ident, $wanted:ident
    ) => {
        let $type { $($field),* } = $running;
        $($names.add($key, *$field != $wanted.$field);)*
    };
}

impl Names {
    fn add(&mut self, name: impl Into<String>, is_changed: bool) {
        if is_changed {
            self.0.push(name.into());
        }
    }

    fn add_listen(&mut self, running: &Listen, wanted: &Listen) {
        add_fields!(
            self,
            Listen {
                socket: "listen.socket",
                mode: "listen.mode",
                owner: "listen.owner",
                group: "listen.group",
                refuse_writable_folder: "listen.refuse_writable_folder",
                tcp: "listen.tcp",
            },
            running,
            wanted
        );
    }

    fn add_ops(&mut self, running: &Ops, wanted: &Ops) {
        add_fields!(
            self,
            Ops {
                listen: "ops.listen",
                hosts: "ops.hosts",
                tls: "ops.tls",
            },
            running,
            wanted
        );
    }

    fn add_limits(&mut self, running: &Limits, wanted: &Limits) {
        add_fields!(
            self,
            Limits {
                body: "limits.body",
                json_body: "limits.json_body",
                body_memory: "limits.body_memory",
                batch_items: "limits.batch_items",
                connections: "limits.connections",
                header_bytes: "limits.header_bytes",
                streams: "limits.streams",
            },
            running,
            wanted
        );
    }

    fn add_timeouts(&mut self, running: &Timeouts, wanted: &Timeouts) {
        add_fields!(
            self,
            Timeouts {
                header: "timeouts.header",
                body: "timeouts.body",
                idle: "timeouts.idle",
                drain: "timeouts.drain_timeout",
            },
            running,
            wanted
        );
    }

    fn add_refresh(&mut self, running: &Refresh, wanted: &Refresh) {
        add_fields!(
            self,
            Refresh {
                poll: "refresh.poll",
                read_timeout: "refresh.read_timeout",
                kek_timeout: "refresh.kek_timeout",
                unknown_interval: "refresh.unknown_interval",
                miss_ttl: "refresh.miss_ttl",
                hedge: "refresh.hedge",
                max_backoff: "refresh.max_backoff",
                cache_dir: "refresh.cache_dir",
                manifest_bytes: "refresh.manifest_bytes",
            },
            running,
            wanted
        );
    }

    fn add_runtime(&mut self, running: &Runtime, wanted: &Runtime) {
        add_fields!(
            self,
            Runtime {
                workers: "runtime.workers",
            },
            running,
            wanted
        );
    }

    /// Returns whether any backend is reached in another way.
    fn add_backends(&mut self, running: &super::Backends, wanted: &super::Backends) -> bool {
        use super::Backends;
        add_fields!(
            self,
            Backends {
                aws: "aws",
                azure: "azure",
                vault: "vault",
                web: "web",
                local: "local",
                pkcs11: "pkcs11",
                plain_http: "backends.plain_http",
                local_keks: "backends.local_keks",
            },
            running,
            wanted
        );
        running != wanted
    }

    fn merge_log(&mut self, running: &Log, wanted: Log) -> Log {
        let Log { format, filter } = wanted;
        self.add("log.format", format != running.format);
        Log {
            format: running.format,
            filter,
        }
    }

    fn merge_audit(&mut self, running: Option<&Audit>, wanted: Option<Audit>) -> Option<Audit> {
        let (Some(running), Some(wanted)) = (running, &wanted) else {
            self.add("audit", running.is_some() || wanted.is_some());
            return running.cloned();
        };
        let Audit {
            sink,
            key_file,
            forwards,
        } = wanted;
        self.add(
            "audit",
            *sink != running.sink || *key_file != running.key_file,
        );
        Some(Audit {
            forwards: forwards.clone(),
            ..running.clone()
        })
    }

    /// Returns the running keyrings with what the config may change of them.
    fn merge_keyrings(&mut self, running: &[Keyring], mut wanted: Vec<Keyring>) -> Vec<Keyring> {
        let mut merged = Vec::with_capacity(running.len());
        for keyring in running {
            let found = wanted
                .extract_if(.., |other| other.name == keyring.name)
                .next();
            merged.push(match found {
                Some(found) => self.merge_keyring(keyring, found),
                None => {
                    self.add(format!("keyring {} (removed)", keyring.name), true);
                    keyring.clone()
                }
            });
        }
        for added in wanted {
            self.add(format!("keyring {} (added)", added.name), true);
        }
        merged
    }

    fn merge_keyring(&mut self, running: &Keyring, wanted: Keyring) -> Keyring {
        let Keyring {
            name,
            location,
            keks,
            confirm,
            min_generation,
            trusted_signers,
            anchor,
            accept_lost,
            wave,
        } = wanted;
        let mut add =
            |key: &str, is_changed| self.add(format!("keyring {name}: {key}"), is_changed);
        add("location", location != running.location);
        add("confirm", confirm != running.confirm);
        add("wave", wave != running.wave);
        Keyring {
            keks,
            min_generation,
            trusted_signers,
            anchor,
            accept_lost,
            ..running.clone()
        }
    }

    fn merge_secrets(&mut self, running: &Secrets, wanted: Secrets) -> Secrets {
        let Secrets {
            miss_ttl,
            force_interval,
            value_bytes,
            wild_names,
            named,
            mappings,
        } = wanted;
        self.add("secrets.miss_ttl", miss_ttl != running.miss_ttl);
        self.add(
            "secrets.force_interval",
            force_interval != running.force_interval,
        );
        self.add("secrets.value_bytes", value_bytes != running.value_bytes);
        self.add("secrets.wild_names", wild_names != running.wild_names);
        Secrets {
            named,
            mappings,
            ..running.clone()
        }
    }
}

#[cfg(test)]
mod tests;
