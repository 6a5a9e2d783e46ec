//! The `user-data` and `meta-data` files.

use serde::Serialize;

use crate::{Seed, SeedError, yaml};

#[derive(Serialize)]
struct MetaData<'a> {
    #[serde(rename = "instance-id")]
    instance_id: &'a str,
    #[serde(rename = "local-hostname")]
    local_hostname: &'a str,
    // The default of NoCloud, said out loud because something relies on it: everything here is local, so all of it is
    // done in cloud-init's first stage, and its second has nothing to do (see `IDLE_UNIT`).
    dsmode: &'static str,
}

/// cloud-config. Every key here is understood by cloud-init 20.4 or, where it is not, ignored by it.
#[derive(Serialize)]
struct UserData<'a> {
    preserve_hostname: bool,
    hostname: &'a str,
    fqdn: &'a str,
    // Only the line of 127.0.1.1 is kept up to date, so that sudo finds the host's own name without asking DNS.
    // `true` would write the whole file anew at each boot, over what a test has added to it.
    manage_etc_hosts: &'static str,
    users: [User<'a>; 1],
    // There is no `ssh_pwauth`: `false` writes sshd_config in cloud-init's config stage and restarts sshd, seconds
    // after the first login. No account has a password that it could forbid.
    //
    // The image's own host keys go and ours is put in their place. With `ssh_keys` given, cloud-init generates no
    // other (which takes 22 s under emulation); `ssh_genkeytypes: []` would add nothing but a schema error.
    ssh_deletekeys: bool,
    ssh_keys: SshKeys<'a>,
    // Both would print keys to the console that the host knows already; each starts a process or a module's work.
    no_ssh_fingerprints: bool,
    ssh: Ssh,
    // The image's locale stays as it is. An image with neither LANG nor the locales package is otherwise set to
    // en_US.UTF-8, which fails and leaves the boot "degraded". Text, not a boolean: older schemas know only text.
    locale: &'static str,
    // The network configuration is read at each boot, so that a new address needs no new instance-id (which would
    // run the user's commands again). Known from cloud-init 21.4 on; 20.4 reads it for a new instance only.
    updates: Updates,
    growpart: GrowPart,
    resize_rootfs: bool,
    package_update: bool,
    package_upgrade: bool,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    packages: &'a [String],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    runcmd: &'a [String],
}

#[derive(Serialize)]
struct User<'a> {
    name: &'a str,
    gecos: &'a str,
    shell: &'static str,
    lock_passwd: bool,
    sudo: &'static str,
    ssh_authorized_keys: &'a [String],
}

#[derive(Serialize)]
struct SshKeys<'a> {
    ed25519_private: String,
    ed25519_public: &'a str,
}

#[derive(Serialize)]
struct Ssh {
    emit_keys_to_console: bool,
}

#[derive(Serialize)]
struct Updates {
    network: When,
}

#[derive(Serialize)]
struct When {
    when: [&'static str; 1],
}

#[derive(Serialize)]
struct GrowPart {
    mode: &'static str,
}

pub(crate) fn meta_data(seed: &Seed) -> Result<String, SeedError> {
    let hostname = seed.hostname.as_str();
    yaml::to_string(
        "meta-data",
        &MetaData { instance_id: &seed.instance_id, local_hostname: hostname, dsmode: "local" },
    )
}

pub(crate) fn user_data(seed: &Seed) -> Result<String, SeedError> {
    let hostname = seed.hostname.as_str();
    let fqdn = match &seed.domain {
        Some(domain) => format!("{hostname}.{domain}"),
        None => hostname.to_owned(),
    };
    let json = yaml::to_string(
        "user-data",
        &UserData {
            preserve_hostname: false,
            hostname,
            fqdn: &fqdn,
            manage_etc_hosts: "localhost",
            users: [User {
                name: &seed.user,
                gecos: &seed.user,
                shell: "/bin/bash",
                lock_passwd: true,
                sudo: "ALL=(ALL) NOPASSWD:ALL",
                ssh_authorized_keys: &seed.authorized_keys,
            }],
            ssh_deletekeys: true,
            ssh_keys: SshKeys {
                // sshd refuses a private key whose last line has no end.
                ed25519_private: format!("{}\n", seed.host_key.private_openssh.trim_end_matches('\n')),
                ed25519_public: &seed.host_key.public_line,
            },
            no_ssh_fingerprints: true,
            ssh: Ssh { emit_keys_to_console: false },
            locale: "false",
            updates: Updates { network: When { when: ["boot"] } },
            growpart: GrowPart { mode: if seed.grow_partition { "auto" } else { "off" } },
            resize_rootfs: true,
            package_update: false,
            package_upgrade: false,
            packages: &seed.packages,
            runcmd: &seed.commands,
        },
    )?;
    Ok(format!("#cloud-config\n{json}"))
}
