#include "server/enrolment.h"

#include <spdlog/spdlog.h>

#include "server/admit.h"
#include "server/logging.h"
#include "server/moment.h"
#include "server/partition_host.h"
#include "server/session.h"
#include "server/shard.h"
#include "wire/messages.h"

namespace tidemark::server {
namespace {

// Everything an enrolment carries from thread to thread; one thread has it at a time.
struct Job {
  Node& node;
  Shard& home;
  std::uint64_t channel;
  std::string peer;
  pb::EnrollRequest request;
  MachineId machine;
  bool known = false;       // enrolled before: the token was made for it
  bool name_taken = false;  // given back when it fails
  bool spent = false;       // the token
  std::string name;
  Authority::Issued issued;

  std::span<const std::byte> secret() const { return std::as_bytes(std::span(request.secret())); }
  PartitionHost& host() const {
    const PartitionId partition = node.partition_for(machine);
    return *node.shard_for(partition).host(partition);
  }
};
using JobPtr = std::shared_ptr<Job>;

void answer(const JobPtr& job) {
  job->home.post([job] {
    ++job->home.counters().enrolments;
    auto* channel = job->home.channel(job->channel);
    if (channel == nullptr) return;  // it left; a token made for the machine enrols it again
    pb::EnrollReply reply;
    reply.set_machine_id(job->machine.to_string());
    reply.set_machine_name(job->name);
    reply.set_certificate_pem(job->issued.certificate_pem);
    reply.set_ca_pem(job->node.authority.ca_pem());
    channel->send(wire::FrameType::enroll_reply, reply);
    channel->close_quietly();
  });
}

void refuse(const JobPtr& job, const Error& error) {
  if (job->name_taken) job->node.names.release(job->name, job->machine);
  if (job->spent) {
    const auto give_back = [job] {
      if (const auto given = job->node.tokens->give_back(job->secret()); !given)
        spdlog::error("token not given back{}", kv(given.error()));
    };
    if (!job->node.workers.post(give_back))
      spdlog::error("token not given back: too much is waiting{}", kv("peer", job->peer));
  }
  job->home.post([job, error] {
    job->home.counters().refuse(Refusal::token);
    if (auto* channel = job->home.channel(job->channel)) channel->end(error, retry_after_ms(error.code));
  });
}

// Runs a step elsewhere; what fails in it ends the enrolment.
template <typename Step>
void on_worker(const JobPtr& job, Step step) {
  const auto run = [job, step] {
    if (const Status done = step(job); !done) refuse(job, done.error());
  };
  if (!job->node.workers.post(run))
    refuse(job, {Code::busy, "enrolment", "too many are waiting", "it is tried again by itself"});
}
template <typename Step>
void on_shard(const JobPtr& job, Step step) {
  job->node.shard_for(job->machine).post([job, step] {
    if (const Status done = step(job); !done) refuse(job, done.error());
  });
}

void change_record(const Job& job, storage::pb::MachineRecord& record) {
  const auto& bytes = job.machine.bytes();
  record.set_machine(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  record.set_name(job.name);
  record.set_enrolled_us(job.node.clock.wall_us());
  record.set_fingerprint(job.request.fingerprint());
  record.clear_boot_id();
  record.clear_quarantine();
  record.clear_quarantine_fingerprint();
  record.set_revoked(false);
  revoke_all_serials(record);
  record.set_certificate_serial(job.issued.info.serial);
}

Status write_record(const JobPtr& job) {
  PartitionHost& host = job->host();
  TIDEMARK_TRY(host.serving());
  if (job->known)
    host.expel(job->machine,
               {Code::permission_denied, job->name, "this machine was enrolled again, from " + job->peer, {}}, 0);
  host.put(
      job->machine, [job](storage::pb::MachineRecord& record) { change_record(*job, record); },
      [job](const Status& written) {
        if (!written) return refuse(job, written.error());
        spdlog::info("machine enrolled{}{}{}{}", kv("machine", job->name), kv("id", job->machine.to_string()),
                     kv("peer", job->peer), kv("again", job->known ? "yes" : "no"));
        answer(job);
      });
  return {};
}

Status spend_token(const JobPtr& job) {
  TIDEMARK_TRY(job->node.tokens->spend(job->secret()));
  job->spent = true;
  on_shard(job, write_record);
  return {};
}

Status look_at_partition(const JobPtr& job) {
  PartitionHost& host = job->host();
  TIDEMARK_TRY(host.serving());
  if (job->known) {
    const auto* machine = host.find(job->machine);
    if (machine == nullptr || machine->record.removed())
      return fail(Code::not_found, job->machine.to_string(), "the machine that the token was made for is gone",
                  "enrol it with a token for a new machine");
    job->name = machine->record.name();
    if (!job->request.machine_name().empty() && job->request.machine_name() != job->name)
      return fail(Code::permission_denied, "token",
                  "it was made for the machine " + job->name + ", not for " + job->request.machine_name(),
                  "use it there, or enrol with --name " + job->name + ", or make a token for a new machine");
  }
  on_worker(job, spend_token);
  return {};
}

// In a partition that serves. While one is being opened its machines' names are not known, and may be taken.
Result<MachineId> new_machine(Node& node) {
  const auto directories = node.directories.views();
  std::vector<PlacementView> partitions;
  for (std::size_t number = 0; number < directories.size(); ++number) {
    for (const PartitionId partition : directories[number].partitions) {
      if (node.shard_for(partition).host(partition)->state() == PartitionHost::State::opening)
        return fail(Code::busy, "partition " + std::to_string(partition.value()), "the server is still opening it",
                    "it is tried again by itself");
      const auto machines = node.occupancy.machines(partition);
      if (machines) partitions.push_back({partition, *machines, number, directories[number].space.available});
    }
  }
  const auto chosen = choose_partition(partitions);
  if (!chosen)
    return fail(Code::unavailable, "partitions", "none of the server's partitions serves",
                "the server's operator must look at it");
  node.occupancy.expect(*chosen);
  return draw_machine(node.superblock, *chosen);
}

Status check_and_sign(const JobPtr& job) {
  const TokenEntry token = TIDEMARK_TRY(job->node.tokens->check(job->secret()));
  job->known = token.machine.has_value();
  job->machine = token.machine ? *token.machine : TIDEMARK_TRY(new_machine(job->node));
  if (!job->known) {
    job->name = job->request.machine_name();
    TIDEMARK_TRY(check_machine_name(job->name));
    TIDEMARK_TRY(job->node.names.take(job->name, job->machine));
    job->name_taken = true;
  }
  job->issued =
      TIDEMARK_TRY(job->node.authority.issue_machine(job->request.csr_pem(), job->machine, job->node.clock.wall_us()));
  on_shard(job, look_at_partition);
  return {};
}

}  // namespace

Channel::Frame Enrolment::on_frame(const wire::FrameHeader& header, std::span<const std::byte> payload) {
  if (header.type == wire::FrameType::error || header.type == wire::FrameType::goodbye) {
    close_quietly();
    return Frame::done;
  }
  const auto refuse_at_once = [&](const Error& error) {
    shard().counters().refuse(Refusal::token);
    end(error, retry_after_ms(error.code));
    return Frame::done;
  };
  if (asked_ || header.type != wire::FrameType::enroll_request || header.number != 0)
    return refuse_at_once({Code::protocol, peer().address, "not the one EnrollRequest that is due here", {}});
  asked_ = true;
  pb::EnrollRequest request;
  if (const auto parsed = wire::parse(header.type, payload, request); !parsed) return refuse_at_once(parsed.error());
  if (const auto known = wire::check_version(request.protocol_version(), "agent"); !known)
    return refuse_at_once(known.error());
  if (const auto name = check_machine_name(request.machine_name()); !name && !request.machine_name().empty())
    return refuse_at_once(name.error());
  if (const auto checked = wire::check(request); !checked) return refuse_at_once(checked.error());
  pause(true);  // nothing more is expected
  auto job = std::make_shared<Job>(Job{.node = shard().node(),
                                       .home = shard(),
                                       .channel = id(),
                                       .peer = peer().address,
                                       .request = std::move(request),
                                       .machine = {},
                                       .name = {},
                                       .issued = {}});
  on_worker(job, check_and_sign);
  return Frame::done;
}

void Enrolment::on_ended(const std::optional<Error>& error) {
  if (error) spdlog::info("enrolment ended{}{}", kv("peer", peer().address), kv(*error));
}

}  // namespace tidemark::server
