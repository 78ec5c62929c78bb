//! `headstart config`: every setting in force, where it comes from, and what it is called in the environment.

use std::io::{IsTerminal, Write};

use clap::Args;
use serde_json::json;

use crate::cli::CliError;
use crate::cli::table::Table;
use crate::config::{Config, InForce, Layers};

/// Arguments of `headstart config`.
#[derive(Args)]
pub struct ConfigArgs {
    /// Only settings whose name begins with this
    #[arg(value_name = "PREFIX", default_value = "")]
    prefix: String,
    /// Print what each setting does and costs
    #[arg(long, conflicts_with = "json")]
    explain: bool,
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

/// Prints the settings, also when they do not fit together; then that is the error.
pub fn run(args: &ConfigArgs, layers: &Layers) -> Result<(), CliError> {
    let chosen = || layers.in_force().iter().filter(|entry| entry.setting.path.starts_with(&args.prefix));
    let mut out = std::io::stdout().lock();
    if args.json {
        let settings: Vec<_> = chosen().map(as_json).collect();
        writeln!(out, "{:#}", serde_json::Value::Array(settings))?;
    } else if args.explain {
        for entry in chosen() {
            let setting = &entry.setting;
            writeln!(out, "{} = {}\n    {}, {}", setting.path, entry.shown(), entry.origin, setting.env)?;
            setting.help.lines().try_for_each(|line| writeln!(out, "    {line}"))?;
            writeln!(out)?;
        }
    } else {
        let mut table = Table::new(["SETTING", "VALUE", "SOURCE", "ENVIRONMENT"]);
        for entry in chosen() {
            let setting = &entry.setting;
            let row = [setting.path.clone(), entry.shown().to_string(), entry.origin.to_string(), setting.env.clone()];
            table.row(row);
        }
        let terminal = out.is_terminal();
        table.write(&mut out, terminal)?;
    }
    Config::new(layers)?;
    Ok(())
}

fn as_json(entry: &InForce) -> serde_json::Value {
    let setting = &entry.setting;
    json!({
        "setting": setting.path,
        "value": entry.shown(),
        "source": entry.origin.to_string(),
        "environment": setting.env,
        "secret": setting.is_secret(),
        "expected": setting.expected(),
        "help": setting.help,
    })
}
