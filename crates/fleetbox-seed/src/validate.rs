//! What each field of a seed may hold.

use crate::{HostKeyPair, Seed, SeedError};

const PEM_BEGIN: &str = "-----BEGIN OPENSSH PRIVATE KEY-----";
const PEM_END: &str = "-----END OPENSSH PRIVATE KEY-----";

/// A value cut for an error message.
pub(crate) fn short(s: &str) -> String {
    s.chars().take(80).collect()
}

pub(crate) fn network_error(what: &'static str, value: String, problem: &'static str) -> SeedError {
    SeedError::Network { what, value, problem }
}

/// Letters, digits and inner hyphens in labels of at most 63, at most 253 in all (RFC 1123 §2.1).
pub(crate) fn is_domain(s: &str) -> bool {
    s.len() <= 253
        && s.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

fn is_instance_id(id: &str) -> bool {
    (1..=64).contains(&id.len())
        && id.starts_with(|c: char| c.is_ascii_alphanumeric())
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

fn is_user(user: &str) -> bool {
    // root is a user that the image already has, and no key or sudo rule of ours belongs to it.
    (1..=32).contains(&user.len())
        && user != "root"
        && user.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && user.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-'))
}

fn is_package(name: &str) -> bool {
    // A leading hyphen would be an option to the package manager.
    (1..=256).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '@')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-._:=~@".contains(&b))
}

/// The key type of one line of an OpenSSH public key, or what is wrong with it.
fn public_key(line: &str) -> Result<&str, &'static str> {
    if line.len() > 16 * 1024 {
        return Err("it is longer than 16 KiB");
    }
    if line.chars().any(|c| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')) {
        return Err("it has a line break or another control character");
    }
    let mut words = line.split(' ');
    let (kind, blob) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    if !["ssh-", "ecdsa-", "sk-"].iter().any(|p| kind.starts_with(p)) {
        // This leaves no room for authorized_keys options before the type.
        return Err("it does not begin with a key type");
    }
    if !kind.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.@".contains(&b)) {
        return Err("its key type has a character that none has");
    }
    // The blob of every type begins with the length of the type's name, under 64 KiB: base64 "AAAA".
    if !blob.starts_with("AAAA") || !blob.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(&b)) {
        return Err("its key is not base64");
    }
    Ok(kind)
}

fn host_key(key: &HostKeyPair) -> Result<(), SeedError> {
    let error = |half, problem| Err(SeedError::HostKey { half, problem });
    match public_key(&key.public_line) {
        Ok("ssh-ed25519") => {}
        Ok(_) => return error("public", "it is not of type ssh-ed25519"),
        Err(problem) => return error("public", problem),
    }
    let body = key.private_openssh.trim_end_matches('\n');
    let Some(body) = body.strip_prefix(PEM_BEGIN).and_then(|b| b.strip_suffix(PEM_END)) else {
        return error("private", "it is not in OpenSSH's PEM form");
    };
    if body.is_empty() || !body.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/=\n".contains(&b)) {
        return error("private", "what is between its PEM lines is not base64");
    }
    Ok(())
}

/// Checks every field of a seed.
pub(crate) fn seed(seed: &Seed) -> Result<(), SeedError> {
    if !is_instance_id(&seed.instance_id) {
        return Err(SeedError::InstanceId { id: short(&seed.instance_id) });
    }
    if !is_user(&seed.user) {
        return Err(SeedError::User { user: short(&seed.user) });
    }
    if let Some(domain) = seed.domain.as_ref().filter(|d| !is_domain(d)) {
        return Err(SeedError::Domain { what: "domain", domain: short(domain) });
    }
    if seed.authorized_keys.is_empty() {
        return Err(SeedError::NoAuthorizedKey);
    }
    for (index, key) in seed.authorized_keys.iter().enumerate() {
        public_key(key).map_err(|problem| SeedError::AuthorizedKey { index, problem })?;
    }
    host_key(&seed.host_key)?;
    seed.network.validate()?;
    if let Some(name) = seed.packages.iter().find(|p| !is_package(p)) {
        return Err(SeedError::Package { name: short(name) });
    }
    for (index, command) in seed.commands.iter().enumerate() {
        let problem = if command.trim().is_empty() {
            "is empty"
        } else if command.contains('\0') {
            "has a NUL character, which no shell can be given"
        } else {
            continue;
        };
        return Err(SeedError::Command { index, problem });
    }
    Ok(())
}
