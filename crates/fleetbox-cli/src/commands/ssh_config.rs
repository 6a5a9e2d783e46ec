//! `fleetbox ssh-config`

use fleetbox::SshAccess;

use crate::commands::Outcomes;
use crate::error::Result;
use crate::exit::Exit;
use crate::output;

pub(crate) async fn run(name: Option<&str>) -> Result {
    if let Some(name) = name {
        output::print(&block(name, &fleetbox::ssh_access(name).await?))?;
        return Ok(Exit::Ok);
    }
    let listing = fleetbox::list().await?;
    let mut outcomes = Outcomes::default();
    let mut blocks = Vec::new();
    // One without an address has never been up; there is nothing to reach yet.
    for machine in listing.machines.iter().filter(|m| m.ip.is_some()) {
        match fleetbox::ssh_access(machine.name.as_str()).await {
            Ok(access) => blocks.push(block(machine.name.as_str(), &access)),
            Err(e) => outcomes.failed(e).await,
        }
    }
    output::print(&blocks.join("\n"))?;
    for error in listing.damaged {
        outcomes.failed(error).await;
    }
    Ok(outcomes.exit())
}

fn block(name: &str, access: &SshAccess) -> String {
    let mut text = format!("Host {name} {}\n", access.host_key_alias);
    for (option, value) in access.options() {
        text += &format!("    {option} {}\n", quoted(&value));
    }
    text
}

/// A value as ssh_config(5) takes it: quoted where it has blanks.
fn quoted(value: &str) -> String {
    if value.contains(char::is_whitespace) { format!("\"{value}\"") } else { value.to_owned() }
}

#[cfg(test)]
mod tests {
    #[test]
    fn values_with_blanks_are_quoted() {
        assert_eq!(super::quoted("/home/a b/id"), "\"/home/a b/id\"");
        assert_eq!(super::quoted("/home/ab/id"), "/home/ab/id");
    }
}
