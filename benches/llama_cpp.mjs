// llama.cpp beside the engine, in one process and without HTTP: tokens/s and time to the first token of clients that ask at
// once, greedily, on the GGUF that `quantize --llama-cpp` writes.
//
//     npm install node-llama-cpp
//     node benches/llama_cpp.mjs MODEL.gguf [CLIENTS=8] [PROMPT=128] [TOKENS=64] [THREADS=2]

import {getLlama} from "node-llama-cpp";

const [path, ...numbers] = process.argv.slice(2);
const [clients = 8, prompt = 128, tokens = 64, threads = 2] = numbers.map(Number);

const llama = await getLlama({gpu: false, maxThreads: threads, build: "never", logLevel: "error"});
const model = await llama.loadModel({modelPath: path});
const context = await model.createContext({
    sequences: clients, contextSize: prompt + tokens + 8, batchSize: 512, threads,
});
const sequences = Array.from({length: clients}, () => context.getSequence());

// Each client has a prompt of its own.
async function answer(sequence, client, began) {
    const ids = Array.from({length: prompt}, (_, place) => 2000 + 100 * client + place);
    let [count, first] = [0, 0];
    for await (const token of sequence.evaluate(ids, {temperature: 0, yieldEogToken: true})) {
        first ||= performance.now() - began;
        if (++count === tokens) break;
    }
    return {first, count};
}

for (let run = 0; run < 4; run++) {
    for (const sequence of sequences) await sequence.clearHistory();
    const began = performance.now();
    const answers = await Promise.all(sequences.map((sequence, client) => answer(sequence, client, began)));
    const seconds = (performance.now() - began) / 1000;
    const firsts = answers.map((answer) => answer.first).sort((a, b) => a - b);
    const count = answers.reduce((sum, answer) => sum + answer.count, 0);
    console.log(
        `${run ? "run " + run : "warm-up"}: ${clients} clients, ${count} tokens in ${seconds.toFixed(2)} s: ` +
        `${(count / seconds).toFixed(1)} tokens/s, first token after ${firsts[0].toFixed(0)} to ` +
        `${firsts.at(-1).toFixed(0)} ms`,
    );
}
process.exit(0);
