#include "server/admit.h"

#include <algorithm>
#include <string_view>

#include "base/hex.h"

namespace tidemark::server {
namespace {

constexpr std::string_view kSuperseded = "superseded:";

bool has_serial(const storage::pb::MachineRecord& record, const std::string& entry) {
  return std::find(record.revoked_serials().begin(), record.revoked_serials().end(), entry) !=
         record.revoked_serials().end();
}

// Every superseded serial becomes a revoked one. True when there was any.
bool revoke_superseded(storage::pb::MachineRecord& record) {
  bool changed = false;
  for (auto& entry : *record.mutable_revoked_serials()) {
    if (!entry.starts_with(kSuperseded)) continue;
    entry.erase(0, kSuperseded.size());
    changed = true;
  }
  return changed;
}

std::string short_hex(const std::string& bytes) { return to_hex(std::as_bytes(std::span(bytes))).substr(0, 16); }

}  // namespace

AdmitDecision decide_admission(const storage::pb::MachineRecord& record, const std::string& serial,
                               const pb::Hello& hello) {
  AdmitDecision decision;
  const auto refuse = [&](Refusal refusal, Code code, std::string what, std::string remedy) {
    decision.refusal = refusal;
    decision.verdict = fail(code, record.name(), std::move(what), std::move(remedy));
    return decision;
  };
  if (record.removed())
    return refuse(Refusal::removed, Code::permission_denied, "this machine was removed from the server",
                  "enrol it as a new machine, with a new token");
  const std::string again =
      "enrol it again with a token made for it: `tidemark token create --machine " + record.name() + "`";
  if (record.revoked())
    return refuse(Refusal::revoked, Code::permission_denied, "the certificates of this machine are revoked", again);
  if (has_serial(record, serial))
    return refuse(Refusal::revoked, Code::permission_denied, "this certificate is revoked", again);

  decision.record = record;
  if (!record.fingerprint().empty() && hello.fingerprint() != record.fingerprint()) {
    const std::string why = "a machine with another fingerprint (" + short_hex(hello.fingerprint()) + " in place of " +
                            short_hex(record.fingerprint()) + ") showed its certificate: a clone, or rebuilt hardware";
    if (record.quarantine_fingerprint() != hello.fingerprint() || record.quarantine().empty()) {
      decision.record.set_quarantine(why);
      decision.record.set_quarantine_fingerprint(hello.fingerprint());
      decision.store = true;
    }
    return refuse(Refusal::quarantined, Code::quarantined,
                  "this machine is not the one that was enrolled: its fingerprint changed",
                  "if it took the other's place: `tidemark machine accept " + record.name() +
                      "` (PATCH quarantine accept); if it is a clone: enrol it with a token of its own");
  }
  if (record.fingerprint().empty()) {
    decision.record.set_fingerprint(hello.fingerprint());
    decision.store = true;
  }
  if (record.boot_id() != hello.boot_id()) {
    decision.record.set_boot_id(hello.boot_id());
    decision.store = true;
  }
  if (serial == record.certificate_serial() && revoke_superseded(decision.record)) decision.store = true;
  return decision;
}

void supersede_serial(storage::pb::MachineRecord& record, const std::string& old_serial,
                      const std::string& new_serial) {
  constexpr int kKept = 32;  // far more than renewals within a certificate's life
  if (old_serial != record.certificate_serial() && !record.certificate_serial().empty())
    record.add_revoked_serials(record.certificate_serial());  // an answer that was lost: nobody has this one
  const std::string entry = std::string(kSuperseded) + old_serial;
  if (!has_serial(record, entry)) record.add_revoked_serials(entry);
  record.set_certificate_serial(new_serial);
  auto& serials = *record.mutable_revoked_serials();
  if (serials.size() > kKept) serials.DeleteSubrange(0, serials.size() - kKept);
}

void revoke_all_serials(storage::pb::MachineRecord& record) {
  revoke_superseded(record);
  if (!record.certificate_serial().empty()) record.add_revoked_serials(record.certificate_serial());
  record.clear_certificate_serial();
}

}  // namespace tidemark::server
