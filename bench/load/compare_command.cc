#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>

#include "bench/load/commands.h"
#include "bench/load/peers.h"
#include "bench/load/report.h"
#include "cli/format.h"

namespace tidemark::bench {
namespace {

using Json = nlohmann::ordered_json;

struct Contender {
  std::string name;
  std::function<Result<double>(const CompareWork&)> measure;
};
struct Discipline {
  std::string name, unit;
  std::vector<Contender> contenders;  // ours first
};

double median(std::vector<double> values) {
  std::ranges::sort(values);
  const std::size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

std::vector<Discipline> disciplines() {
  const auto peer = [](Peer which, auto measure) {
    return [=](const CompareWork& work) { return measure(work, which); };
  };
  return {{"bulk: server CPU",
           "s/GiB",
           {{"tidemarkd", our_bulk},
            {"tidemarkd, 2:1 compressed, a plain GiB", our_bulk_compressed},
            {"TLS floor with disk", floor_bulk},
            {"TLS floor, dropped", floor_drop},
            {"qemu-nbd", peer(Peer::qemu_nbd, peer_bulk)},
            {"nbdkit", peer(Peer::nbdkit, peer_bulk)}}},
          {"4 KiB random durable writes, 64 connections, 32 to an acknowledgement",
           "1/s",
           {{"tidemarkd", our_random},
            {"qemu-nbd", peer(Peer::qemu_nbd, peer_random)},
            {"nbdkit", peer(Peer::nbdkit, peer_random)},
            {"disk alone (fio), one stream", disk_random}}}};
}

}  // namespace

int run_compare(const CompareArguments& arguments) {
  std::error_code error;
  if (!std::filesystem::is_directory(arguments.directory, error))
    return complain(Error{Code::not_found, arguments.directory, "there is no such directory",
                          "make it, or give another with --dir"});
  std::string root = arguments.directory + "/tidemark-compare-XXXXXX";
  if (::mkdtemp(root.data()) == nullptr) return complain(fail_errno(errno, root, "make a directory").error());
  const cli::Interrupt interrupt([] {});
  Json rows = Json::array();
  cli::Table table({{"WHAT"},
                    {"WHO"},
                    {"MEDIAN", cli::Table::Align::right},
                    {"SPREAD", cli::Table::Align::right},
                    {"UNIT"},
                    {"TIDEMARKD IS", cli::Table::Align::right}});
  bool good = true;
  for (const Discipline& discipline : disciplines()) {
    std::map<std::string, std::vector<double>> samples;
    std::map<std::string, Error> failures;
    for (std::size_t i = 0; i < arguments.repetitions && !interrupt.raised(); ++i)
      for (const Contender& contender : discipline.contenders) {
        if (interrupt.raised() || failures.contains(contender.name)) continue;
        const std::string directory = root + "/work";
        std::filesystem::create_directories(directory);
        const auto value =
            contender.measure({.directory = directory, .mib = arguments.mib, .seconds = arguments.seconds});
        std::filesystem::remove_all(directory, error);
        if (value)
          samples[contender.name].push_back(*value);
        else
          failures.emplace(contender.name, value.error());
        std::fprintf(
            stderr, "%s: %s: %s\n", discipline.name.c_str(), contender.name.c_str(),
            value ? fmt::format("{:.3f} {}", *value, discipline.unit).c_str() : value.error().message().c_str());
      }
    for (const Contender& contender : discipline.contenders) {
      Json row{{"row", discipline.name}, {"who", contender.name}, {"unit", discipline.unit}};
      if (samples[contender.name].empty()) {
        const auto failure = failures.find(contender.name);
        const std::string why = failure == failures.end() ? "interrupted" : failure->second.message();
        row["value"] = nullptr;
        row["note"] = "not measured: " + why;
        // A peer that is not there is said to be missing; ours, or one that fails, is trouble.
        good = good && failure != failures.end() && failure->second.code == Code::not_found &&
               contender.name != "tidemarkd";
        table.add({discipline.name, contender.name, "-", "-", discipline.unit,
                   failure != failures.end() && failure->second.code == Code::not_found ? "missing" : "failed"});
      } else {
        const auto& values = samples[contender.name];
        const double mid = median(values);
        std::vector<double> ratios;
        const auto& ours = samples["tidemarkd"];
        for (std::size_t i = 0; i < std::min(ours.size(), values.size()); ++i) ratios.push_back(ours[i] / values[i]);
        row["value"] = mid;
        row["samples"] = values.size();
        row["values"] = values;
        row["spread"] = {std::ranges::min(values), std::ranges::max(values)};
        if (!ratios.empty() && contender.name != "tidemarkd") {
          row["ratio"] = median(ratios);
          row["ratio_spread"] = {std::ranges::min(ratios), std::ranges::max(ratios)};
          row["ratios"] = ratios;
        }
        table.add({discipline.name, contender.name, fmt::format("{:.2f}", mid),
                   fmt::format("{:.2f} to {:.2f}", std::ranges::min(values), std::ranges::max(values)), discipline.unit,
                   row.contains("ratio") ? fmt::format("{:.2f} x", row["ratio"].get<double>()) : ""});
      }
      rows.push_back(row);
    }
  }
  std::filesystem::remove_all(root, error);
  Json report{{"version", TIDEMARK_VERSION}, {"repetitions", arguments.repetitions}, {"rows", rows}};
  if (interrupt.raised()) report["interrupted"] = true;
  if (arguments.json_path != "-") table.print(std::cout);
  if (const Status status = write_report(arguments.json_path, report.dump(1) + "\n"); !status)
    return complain(status.error());
  return good && !interrupt.raised() ? 0 : 1;
}

}  // namespace tidemark::bench
