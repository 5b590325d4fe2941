#include "agent/memory.h"

#include <nlohmann/json.hpp>

#include "agent/text_file.h"
#include "base/hex.h"
#include "wire/messages.h"

namespace tidemark::agent {
namespace {

using Json = nlohmann::json;
constexpr int kVersion = 1;
constexpr char kRemedy[] = "remove it: the next sync compares every disk with the server's copy and loses nothing";

std::string hex_of(std::string_view bytes) { return to_hex(std::as_bytes(std::span(bytes))); }
std::string hash_text(const Hash128& hash) { return hex_of(wire::hash_to_bytes(hash)); }

std::string bytes_of(const std::string& hex_digits) {
  std::string bytes(hex_digits.size() / 2, '\0');
  if (!from_hex(hex_digits, std::as_writable_bytes(std::span(bytes)))) throw std::invalid_argument("not hexadecimal");
  return bytes;
}
Hash128 hash_of(const Json& value) {
  const auto hash = wire::hash_from_bytes(bytes_of(value.get<std::string>()));
  if (!hash) throw std::invalid_argument("not a digest");
  return *hash;
}

// Identities and names may be any bytes of a path: JSON wants UTF-8, so they travel as hexadecimal digits.
Json disk_to_json(const KnownDisk& disk) {
  return {{"disk", disk.disk.value()},
          {"identity_hex", hex_of(disk.identity)},
          {"name_hex", hex_of(disk.name)},
          {"size", disk.size}};
}
KnownDisk disk_from_json(const Json& value) {
  return {DiskId(value.at("disk").get<std::uint32_t>()), bytes_of(value.at("identity_hex").get<std::string>()),
          bytes_of(value.at("name_hex").get<std::string>()), value.at("size").get<std::uint64_t>()};
}

Json epoch_to_json(const std::optional<EpochFacts>& epoch) {
  if (!epoch) return nullptr;
  Json disks = Json::array();
  for (const KnownDisk& disk : epoch->disks) disks.push_back(disk_to_json(disk));
  return {{"number", epoch->number.value()},
          {"digest", hash_text(epoch->digest)},
          {"consistency", static_cast<int>(epoch->consistency)},
          {"cut_us", epoch->cut_us},
          {"disks", std::move(disks)}};
}
std::optional<EpochFacts> epoch_from_json(const Json& value) {
  if (value.is_null()) return std::nullopt;
  EpochFacts epoch;
  epoch.number = EpochNumber(value.at("number").get<std::uint64_t>());
  epoch.digest = hash_of(value.at("digest"));
  const int consistency = value.at("consistency").get<int>();
  if (consistency < 1 || consistency > 4) throw std::invalid_argument("unknown consistency");
  epoch.consistency = static_cast<Consistency>(consistency);
  epoch.cut_us = value.at("cut_us").get<std::int64_t>();
  for (const Json& disk : value.at("disks")) epoch.disks.push_back(disk_from_json(disk));
  return epoch;
}

Json audit_to_json(const AuditRecord& audit) {
  return {
      {"proven_us", audit.proven_us},   {"pass_began_us", audit.pass_began_us},     {"disk_hex", hex_of(audit.disk)},
      {"chunk", audit.chunk},           {"pass_incomplete", audit.pass_incomplete}, {"differences", audit.differences},
      {"difference", audit.difference}, {"difference_us", audit.difference_us}};
}
AuditRecord audit_from_json(const Json& value) {
  AuditRecord audit;
  audit.proven_us = value.at("proven_us").get<std::int64_t>();
  audit.pass_began_us = value.at("pass_began_us").get<std::int64_t>();
  audit.disk = bytes_of(value.at("disk_hex").get<std::string>());
  audit.chunk = value.at("chunk").get<std::uint64_t>();
  audit.pass_incomplete = value.at("pass_incomplete").get<bool>();
  audit.differences = value.at("differences").get<std::uint64_t>();
  audit.difference = value.at("difference").get<std::string>();
  audit.difference_us = value.at("difference_us").get<std::int64_t>();
  return audit;
}

}  // namespace

void Memory::became_durable(EpochNumber epoch, const Hash128& digest, const std::string& boot) {
  if (pending && pending->number == epoch && pending->digest == digest) {
    durable = std::move(pending);
    pending.reset();
    boot_id = boot;
    rescan.clear();
    if (durable->consistency != Consistency::fuzzy) {
      newest_point = epoch;
      newest_point_us = durable->cut_us;
      unchanged_as_of_us = 0;
      alarm.clear();
      alarm_us = 0;
    }
  } else if (!durable || durable->number != epoch) {
    durable.reset();  // made before this memory began: nothing more is known of it
  }
  if (pending && pending->number <= epoch) pending.reset();
}

std::string encode_memory(const Memory& memory) {
  Json body = {{"version", kVersion},
               {"machine", memory.machine.to_string()},
               {"durable_epoch", memory.session.durable_epoch.value()},
               {"durable_digest", hash_text(memory.session.durable_digest)},
               {"open_epoch", nullptr},
               {"durable", epoch_to_json(memory.durable)},
               {"pending", epoch_to_json(memory.pending)},
               {"boot_id", hex_of(memory.boot_id)},
               {"rescan", memory.rescan},
               {"newest_point", memory.newest_point.value()},
               {"newest_point_us", memory.newest_point_us},
               {"unchanged_as_of_us", memory.unchanged_as_of_us},
               {"alarm", memory.alarm},
               {"alarm_us", memory.alarm_us},
               {"audit", audit_to_json(memory.audit)}};
  body["unacknowledged"] = Json::array();
  for (const auto& commit : memory.session.unacknowledged) {
    body["unacknowledged"].push_back({{"epoch", commit.epoch.value()}, {"digest", hash_text(commit.digest)}});
  }
  if (memory.session.open_epoch) body["open_epoch"] = hex_of(memory.session.open_epoch->SerializeAsString());
  return with_checksum(body.dump(1, ' ', false, Json::error_handler_t::replace));
}

Result<Memory> decode_memory(const std::string& text, const std::string& name) {
  std::string why;
  const auto body = without_checksum(text, why);
  if (!body) return fail(Code::corrupt, name, "the agent's memory is damaged: " + why, kRemedy);
  try {
    const Json json = Json::parse(*body);
    if (json.at("version").get<int>() != kVersion) {
      return fail(Code::unsupported, name, "written by another version of the agent",
                  "use that version, or remove the file: the next sync then compares everything");
    }
    Memory memory;
    const auto machine = MachineId::parse(json.at("machine").get<std::string>());
    if (!machine) throw std::invalid_argument("not a machine");
    memory.machine = *machine;
    memory.session.durable_epoch = EpochNumber(json.at("durable_epoch").get<std::uint64_t>());
    memory.session.durable_digest = hash_of(json.at("durable_digest"));
    if (!json.at("open_epoch").is_null()) {
      pb::OpenEpoch open;
      if (!open.ParseFromString(bytes_of(json.at("open_epoch").get<std::string>())))
        throw std::invalid_argument("bad open epoch");
      memory.session.open_epoch = std::move(open);
    }
    for (const Json& commit : json.at("unacknowledged")) {
      memory.session.unacknowledged.push_back(
          {EpochNumber(commit.at("epoch").get<std::uint64_t>()), hash_of(commit.at("digest"))});
    }
    memory.durable = epoch_from_json(json.at("durable"));
    memory.pending = epoch_from_json(json.at("pending"));
    memory.boot_id = bytes_of(json.at("boot_id").get<std::string>());
    memory.rescan = json.at("rescan").get<std::string>();
    memory.newest_point = EpochNumber(json.at("newest_point").get<std::uint64_t>());
    memory.newest_point_us = json.at("newest_point_us").get<std::int64_t>();
    memory.unchanged_as_of_us = json.at("unchanged_as_of_us").get<std::int64_t>();
    memory.alarm = json.at("alarm").get<std::string>();
    memory.alarm_us = json.at("alarm_us").get<std::int64_t>();
    if (json.contains("audit")) memory.audit = audit_from_json(json.at("audit"));  // older agents made none
    return memory;
  } catch (const std::exception& error) {
    return fail(Code::corrupt, name, std::string("the agent's memory is damaged: ") + error.what(), kRemedy);
  }
}

Result<Memory> load_memory(const std::filesystem::path& path, const MachineId& machine) {
  const auto text = read_text_file(path);
  if (!text && text.error().code == Code::not_found) {
    Memory memory;
    memory.machine = machine;
    return memory;
  }
  if (!text) return std::unexpected(text.error());
  Memory memory = TIDEMARK_TRY(decode_memory(*text, path.string()));
  if (memory.machine != machine) {
    return fail(Code::corrupt, path.string(), "it belongs to another machine: " + memory.machine.to_string(), kRemedy);
  }
  return memory;
}

Status save_memory(const std::filesystem::path& path, const Memory& memory) {
  return write_file_atomically(path, encode_memory(memory), 0600);
}

}  // namespace tidemark::agent
