//! `ps`.

use std::process::ExitCode;

use hearth_api::v1::{Border, HealthStatus, Machine, MachineState, MachineStatus, PortMapping};
use jiff::Timestamp;

use crate::arguments::List;
use crate::error::CliError;
use crate::node::Node;
use crate::print::{self, Cell, Screen, Table, WARNING, ago, shortened, since};
use crate::resolve::shown_port;

/// How much of a command docker shows.
const COMMAND_WIDTH: usize = 20;

/// Lists machines.
pub(super) async fn list(node: &Node, arguments: &List) -> Result<ExitCode, CliError> {
    let machines = node
        .call(async |client| client.machines(arguments.all, &arguments.filter).await)
        .await?;
    if arguments.json {
        print::json(&machines)?;
    } else if arguments.quiet {
        let ids: String = machines
            .iter()
            .map(|machine| format!("{}\n", machine.id))
            .collect();
        print::out(&ids)?;
    } else {
        let mut screen = Screen::stdout();
        screen.width = screen.width.filter(|_| !arguments.no_trunc);
        print::out(&table(&machines, arguments.no_trunc, Timestamp::now()).render(screen))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn table(machines: &[Machine], whole: bool, now: Timestamp) -> Table {
    let mut table = Table::new(&[
        ("ID", None),
        ("NAME", Some(12)),
        ("IMAGE", Some(10)),
        ("COMMAND", Some(10)),
        ("STATUS", None),
        ("DRIVER", None),
        ("CREATED", None),
        ("PORTS", Some(10)),
    ]);
    for machine in machines {
        table.push([
            Cell::from(&machine.id),
            Cell::from(&machine.name),
            Cell::from(&machine.spec.image),
            Cell::from(command(machine, whole)),
            status(&machine.state, now),
            driver(machine),
            Cell::from(ago(&machine.created_at, now)),
            Cell::from(ports(machine)),
        ]);
    }
    table
}

fn command(machine: &Machine, whole: bool) -> String {
    if machine.spec.hold {
        return "(holds)".to_owned();
    }
    let joined = machine.arguments.join(" ");
    let shown = if whole {
        joined
    } else {
        shortened(&joined, COMMAND_WIDTH)
    };
    format!("\"{shown}\"")
}

fn ports(machine: &Machine) -> String {
    let shown = |port: &PortMapping| format!("{}->{}/{}", shown_port(port), port.guest, port.protocol);
    machine.ports.iter().map(shown).collect::<Vec<_>>().join(", ")
}

fn driver(machine: &Machine) -> Cell {
    match machine.border {
        Border::Kvm => Cell::from(format!("{}/kvm", machine.driver)),
        // Correct, but slower, and a weaker border than hardware: whoever runs foreign code should see it.
        Border::Emulated => Cell::from(format!("{}/emulated", machine.driver)).styled(WARNING),
    }
}

/// Adds docker's words for a workload's health.
fn health(state: &MachineState, up: &str) -> Cell {
    match state.health.as_ref().map(|health| health.status) {
        None => Cell::from(up),
        Some(HealthStatus::Starting) => Cell::from(format!("{up} (health: starting)")),
        Some(HealthStatus::Healthy) => Cell::from(format!("{up} (healthy)")),
        Some(HealthStatus::Unhealthy) => Cell::from(format!("{up} (unhealthy)")).styled(WARNING),
    }
}

fn status(state: &MachineState, now: Timestamp) -> Cell {
    let ended = || {
        state
            .finished_at
            .as_deref()
            .map(|time| format!(" {}", ago(time, now)))
    };
    let up = || {
        let up = state.started_at.as_deref().and_then(|time| since(time, now));
        format!("Up {}", up.unwrap_or_default()).trim_end().to_owned()
    };
    match state.status {
        MachineStatus::Created => "Created".into(),
        MachineStatus::Starting => "Starting".into(),
        MachineStatus::Running => health(state, &up()),
        MachineStatus::Paused => Cell::from(format!("{} (Paused)", up())),
        MachineStatus::Restarting => Cell::from(format!(
            "Restarting ({}){}",
            state.exit_code.unwrap_or_default(),
            ended().unwrap_or_default()
        )),
        MachineStatus::Stopping => "Stopping".into(),
        MachineStatus::Exited => Cell::from(format!(
            "Exited ({}){}",
            state.exit_code.unwrap_or_default(),
            ended().unwrap_or_default()
        )),
        MachineStatus::Failed => {
            Cell::from(format!("Failed{}", ended().unwrap_or_default())).styled(print::FAILURE)
        }
        MachineStatus::Removing => "Removing".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(status: MachineStatus, border: Border) -> Machine {
        Machine {
            id: "0123456789ab".into(),
            name: "web".into(),
            spec: hearth_api::v1::MachineSpec {
                image: "docker.io/library/python:3.13-slim".into(),
                ..Default::default()
            },
            secrets: Vec::new(),
            image_digest: String::new(),
            arguments: ["python3", "-m", "http.server", "8000"]
                .map(str::to_owned)
                .to_vec(),
            state: MachineState {
                status,
                exit_code: Some(137),
                reason: None,
                health: None,
                pid: None,
                started_at: Some("2025-01-01T11:57:00Z".into()),
                finished_at: Some("2025-01-01T11:58:00Z".into()),
            },
            created_at: "2025-01-01T10:00:00Z".into(),
            driver: "qemu".into(),
            driver_reason: None,
            network_reason: None,
            given_address: None,
            border,
            vcpus: 1,
            cpu_quota_us: None,
            memory_mib: 256,
            ports: Vec::from_iter((status == MachineStatus::Running).then(|| PortMapping {
                address: Some("127.0.0.1".into()),
                host: 8080,
                guest: 80,
                protocol: hearth_api::v1::PortProtocol::Tcp,
            })),
            restart_count: 0,
            health_check: None,
            owner: None,
            generation: 1,
            origin: None,
            template: None,
            stages: Vec::new(),
        }
    }

    fn rendered(width: Option<usize>, whole: bool) -> String {
        let machines = [
            machine(MachineStatus::Running, Border::Kvm),
            machine(MachineStatus::Exited, Border::Emulated),
        ];
        let now = "2025-01-01T12:00:00Z".parse().unwrap();
        table(&machines, whole, now).render(Screen { width, colour: false })
    }

    #[test]
    fn a_wide_terminal_shows_everything() {
        let expected = "\
ID             NAME   IMAGE                                COMMAND                  STATUS                       DRIVER          CREATED       PORTS
0123456789ab   web    docker.io/library/python:3.13-slim   \"python3 -m http.ser…\"   Up 3 minutes                 qemu/kvm        2 hours ago   127.0.0.1:8080->80/tcp
0123456789ab   web    docker.io/library/python:3.13-slim   \"python3 -m http.ser…\"   Exited (137) 2 minutes ago   qemu/emulated   2 hours ago
";
        assert_eq!(rendered(Some(200), false), expected);
        assert!(rendered(None, true).contains("\"python3 -m http.server 8000\""));
    }

    #[test]
    fn health_is_told_in_dockers_words() {
        let now = "2025-01-01T12:00:00Z".parse().unwrap();
        let told = |status| {
            let mut machine = machine(MachineStatus::Running, Border::Kvm);
            machine.state.health = Some(hearth_api::v1::Health {
                status,
                failing_streak: 0,
                log: Vec::new(),
            });
            table(&[machine], false, now).render(Screen {
                width: None,
                colour: false,
            })
        };
        assert!(told(HealthStatus::Starting).contains("  Up 3 minutes (health: starting)  "));
        assert!(told(HealthStatus::Healthy).contains("  Up 3 minutes (healthy)  "));
        assert!(told(HealthStatus::Unhealthy).contains("  Up 3 minutes (unhealthy)  "));
    }

    #[test]
    fn a_narrow_terminal_keeps_id_and_status_whole() {
        for width in [60, 80] {
            let text = rendered(Some(width), false);
            assert!(
                text.contains("0123456789ab   web    docker.io…   \"python3 …"),
                "{text}"
            );
            assert!(text.contains("Exited (137) 2 minutes ago"), "{text}");
        }
    }
}
